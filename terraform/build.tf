# Builds from GitHub. What a pull request runs can read settings and nothing else, whatever it
# writes into cloudbuild.yaml; what the main branch runs deploys. No account has a key, and none
# can give itself a role on the project: who exists, what a custom role holds and this file are
# applied by hand. On buckets and secrets a deployment sets who may read them, and so could let
# itself in: each such change is in the audit log.
locals {
  builds = var.build == null ? {} : {
    check  = "builds of pull requests"
    deploy = "builds of the main branch"
  }
  build_count        = var.build == null ? 0 : 1
  trigger_count      = try(var.build.app_installation_id, null) == null ? 0 : 1
  build_state_bucket = try(coalesce(var.build.state_bucket, "${var.project}-terraform"), null)
  builders           = var.build == null ? {} : merge(local.builds, { start = "starts builds of pull requests" })
  build_agent        = "serviceAccount:service-${local.project_number}@gcp-sa-cloudbuild.iam.gserviceaccount.com"

  # What Terraform makes has no narrower place to be granted: it does not exist yet.
  deploy_roles = [
    "roles/aiplatform.user",
    "roles/artifactregistry.admin",
    "roles/cloudbuild.builds.editor",
    "roles/cloudbuild.connectionAdmin",
    "roles/cloudscheduler.admin",
    "roles/cloudsql.admin",
    "roles/compute.networkAdmin",
    "roles/iam.roleViewer",
    "roles/iam.serviceAccountViewer",
    "roles/iam.workloadIdentityPoolViewer",
    "roles/iap.admin",
    "roles/logging.configWriter",
    "roles/logging.logWriter",
    "roles/monitoring.editor",
    "roles/ondemandscanning.admin",
    "roles/run.admin",
    "roles/servicenetworking.networksAdmin",
    "roles/serviceusage.serviceUsageAdmin",
  ]
  check_roles = ["roles/logging.logWriter", "roles/ondemandscanning.admin"]

  build_commands = {
    for build in keys(local.builds) : build => [
      "builds", "submit", ".", "--config=cloudbuild.yaml", "--ignore-file=cloudbuild/ignore",
      "--region=${var.region}",
      "--service-account=${google_service_account.builder[build].id}",
      "--gcs-source-staging-dir=gs://${google_storage_bucket.this["staging"].name}/${local.sources}",
      "--suppress-logs",
      join(",", concat(["--substitutions=COMMIT_SHA=$COMMIT_SHA"], [
        for name, value in {
          _CACHE_REPOSITORY = google_artifact_registry_repository.build[0].repository_id
          _DEPLOY           = build == "deploy"
          _REGION           = var.region
          _REPOSITORY       = google_artifact_registry_repository.images.repository_id
          _STATE_BUCKET     = local.build_state_bucket
        } : "${name}=${value}"
      ])),
    ]
  }

  # Folder of the staging bucket. The rest of it is the trainer's.
  sources = "source"
  only_sources = {
    title       = "greenroom-sources"
    description = "Sources of builds only"
    expression  = "resource.name.startsWith(\"projects/_/buckets/${google_storage_bucket.this["staging"].name}/objects/${local.sources}/\")"
  }

  build_project_grants = var.build == null ? {} : merge(
    { for role in local.deploy_roles : "deploy ${role}" => { account = "deploy", role = role } },
    { for role in local.check_roles : "check ${role}" => { account = "check", role = role } },
    {
      "start starter"  = { account = "start", role = google_project_iam_custom_role.build["starter"].name }
      "start log"      = { account = "start", role = "roles/logging.logWriter" }
      "deploy builder" = { account = "deploy", role = google_project_iam_custom_role.build["builder"].name }
      "check planner"  = { account = "check", role = google_project_iam_custom_role.build["planner"].name }
      "deploy grants"  = { account = "deploy", role = "roles/resourcemanager.projectIamAdmin" }
    },
    # Enough for a budget of one project, and nothing of the billing account's others.
    var.budget == null ? {} : {
      "deploy budget" = { account = "deploy", role = "roles/billing.projectCostsManager" }
    },
  )

  # All that a deployment may grant on the project, see grants.tf.
  grantable_roles = concat(
    [for name in ["inspector", "ledger_writer", "metrics_reader", "schedule_operator"] : "projects/${var.project}/roles/${var.role_prefix}.${name}"],
    ["roles/aiplatform.user", "roles/datastore.user", "roles/datastore.viewer", "roles/logging.viewer", "roles/serviceusage.serviceUsageConsumer"],
  )

  build_custom_roles = var.build == null ? {} : {
    # Google's admin roles of Cloud Storage, Firestore and Secret Manager may also read and write
    # what is stored.
    builder = {
      title = "Greenroom: make buckets, secrets and the Firestore database"
      permissions = [
        "datastore.backupSchedules.create",
        "datastore.backupSchedules.delete",
        "datastore.backupSchedules.get",
        "datastore.backupSchedules.list",
        "datastore.backupSchedules.update",
        "datastore.databases.create",
        "datastore.databases.delete",
        "datastore.databases.get",
        "datastore.databases.getMetadata",
        "datastore.databases.list",
        "datastore.databases.update",
        "datastore.indexes.create",
        "datastore.indexes.delete",
        "datastore.indexes.get",
        "datastore.indexes.list",
        "datastore.indexes.update",
        "datastore.operations.get",
        "datastore.operations.list",
        "secretmanager.secrets.create",
        "secretmanager.secrets.delete",
        "secretmanager.secrets.get",
        "secretmanager.secrets.getIamPolicy",
        "secretmanager.secrets.list",
        "secretmanager.secrets.setIamPolicy",
        "secretmanager.secrets.update",
        "secretmanager.versions.add",
        "secretmanager.versions.destroy",
        "secretmanager.versions.disable",
        "secretmanager.versions.enable",
        "secretmanager.versions.get",
        "secretmanager.versions.list",
        "storage.buckets.create",
        "storage.buckets.delete",
        "storage.buckets.get",
        "storage.buckets.getIamPolicy",
        "storage.buckets.list",
        "storage.buckets.setIamPolicy",
        "storage.buckets.update",
      ]
    }
    # A plan reads settings and policies: no object, no row, no secret, no log.
    planner = {
      title = "Greenroom: plan"
      permissions = concat(var.budget == null ? [] : ["billing.resourcebudgets.read"], [
        "artifactregistry.repositories.get",
        "artifactregistry.repositories.getIamPolicy",
        "cloudbuild.builds.get",
        "cloudbuild.builds.list",
        "cloudbuild.connections.get",
        "cloudbuild.connections.getIamPolicy",
        "cloudbuild.repositories.get",
        "cloudscheduler.jobs.get",
        "cloudsql.databases.get",
        "cloudsql.instances.get",
        "cloudsql.users.get",
        "cloudsql.users.list",
        "compute.firewalls.get",
        "compute.globalAddresses.get",
        "compute.networks.get",
        "compute.networks.listPeeringRoutes",
        "compute.projects.get",
        "compute.subnetworks.get",
        "compute.subnetworks.getIamPolicy",
        "datastore.backupSchedules.get",
        "datastore.backupSchedules.list",
        "datastore.databases.getMetadata",
        "datastore.indexes.get",
        "datastore.indexes.list",
        "iam.roles.get",
        "iam.serviceAccounts.get",
        "iam.serviceAccounts.getIamPolicy",
        "iam.workloadIdentityPoolProviders.get",
        "iam.workloadIdentityPools.get",
        "iap.webServices.getIamPolicy",
        "logging.logMetrics.get",
        "monitoring.alertPolicies.get",
        "monitoring.dashboards.get",
        "monitoring.notificationChannels.get",
        "monitoring.services.get",
        "monitoring.slos.get",
        "monitoring.uptimeCheckConfigs.get",
        "resourcemanager.projects.get",
        "resourcemanager.projects.getIamPolicy",
        "run.jobs.get",
        "run.services.get",
        "run.services.getIamPolicy",
        "secretmanager.secrets.get",
        "secretmanager.secrets.getIamPolicy",
        "secretmanager.versions.get",
        "servicenetworking.services.get",
        "serviceusage.services.get",
        "serviceusage.services.list",
        "serviceusage.services.use",
        "storage.buckets.get",
        "storage.buckets.getIamPolicy",
      ])
    }
    # Of a workflow on GitHub: start a build and watch it.
    starter = {
      title = "Greenroom: start builds"
      permissions = [
        "cloudbuild.builds.create",
        "cloudbuild.builds.get",
        "cloudbuild.builds.list",
        "logging.logEntries.list",
        "logging.privateLogEntries.list",
        "serviceusage.services.use",
      ]
    }
  }
}

resource "google_project_service" "build" {
  count = local.build_count

  project            = local.project
  service            = "ondemandscanning.googleapis.com"
  disable_on_destroy = false
}

resource "google_service_account" "builder" {
  for_each = local.builders

  project      = local.project
  account_id   = "greenroom-${each.key}"
  display_name = "Greenroom: ${each.value}"
}

resource "google_project_iam_custom_role" "build" {
  for_each = local.build_custom_roles

  project     = local.project
  role_id     = "${var.role_prefix}.${each.key}"
  title       = each.value.title
  permissions = each.value.permissions
}

resource "google_project_iam_member" "builder" {
  for_each = local.build_project_grants

  project = local.project
  member  = google_service_account.builder[each.value.account].member
  role    = each.value.role

  dynamic "condition" {
    for_each = each.value.role == "roles/resourcemanager.projectIamAdmin" ? [local.grantable_roles] : []

    content {
      title       = "greenroom-roles"
      description = "Only the roles that a deployment grants on the project"
      expression  = "api.getAttribute('iam.googleapis.com/modifiedGrantsByRole', []).hasOnly([${join(", ", formatlist("'%s'", condition.value))}])"
    }
  }

  lifecycle {
    precondition {
      condition     = alltrue([for grant in local.project_grants : grant.role == null || contains(local.grantable_roles, grant.role)])
      error_message = "A role that grants.tf grants on the project is missing in grantable_roles of build.tf: builds of the main branch could not grant it."
    }
  }
}

# Layers that are used again, and what the steps run in. Apart from the images that are served:
# its tags move.
resource "google_artifact_registry_repository" "build" {
  #checkov:skip=CKV_GCP_84:Google's own keys encrypt it; it holds no data of users
  count = local.build_count

  project       = local.project
  location      = var.region
  repository_id = "greenroom-build"
  description   = "Layers that builds use again"
  format        = "DOCKER"

  cleanup_policies {
    id     = "delete-old"
    action = "DELETE"

    condition {
      older_than = "2592000s" # 30 days
      tag_state  = "ANY"
    }
  }
}

resource "google_artifact_registry_repository_iam_member" "cache" {
  count = local.build_count

  project    = local.project
  location   = var.region
  repository = google_artifact_registry_repository.build[0].name
  member     = google_service_account.builder["check"].member
  role       = "roles/artifactregistry.reader"
}

# The bucket with Terraform's state is made by hand, before the first apply.
resource "google_storage_bucket_iam_member" "state" {
  for_each = var.build == null ? {} : {
    check  = "roles/storage.objectViewer"
    deploy = "roles/storage.objectUser"
  }

  bucket = local.build_state_bucket
  member = google_service_account.builder[each.key].member
  role   = each.value
}

# The sources of a build: who starts it puts them there, and it reads them.
resource "google_storage_bucket_iam_member" "source" {
  for_each = merge(
    { for build in keys(local.builds) : "${build} reads" => { member = google_service_account.builder[build].member, role = "roles/storage.objectViewer" } },
    { for build, member in local.starters : "${build} writes" => { member = member, role = "roles/storage.objectCreator" } },
    { for build, member in local.workflows : "${build} workflow writes" => { member = member, role = "roles/storage.objectCreator" } },
  )

  bucket = google_storage_bucket.this["staging"].name
  member = each.value.member
  role   = each.value.role

  condition {
    title       = local.only_sources.title
    description = local.only_sources.description
    expression  = local.only_sources.expression
  }
}

# gcloud looks whether the bucket is there.
resource "google_storage_bucket_iam_member" "staging" {
  for_each = merge(
    { for build, member in local.starters : build => member },
    { for build, member in local.workflows : "${build} workflow" => member },
  )

  bucket = google_storage_bucket.this["staging"].name
  member = each.value
  role   = "roles/storage.legacyBucketReader"
}

# Who deploys a service that runs as an account must be allowed to act as it.
resource "google_service_account_iam_member" "deploy_act_as" {
  for_each = var.build == null ? {} : merge(
    { for name, account in google_service_account.this : name => account.name },
    { for name, account in google_service_account.builder : "build ${name}" => account.name },
  )

  service_account_id = each.value
  member             = google_service_account.builder["deploy"].member
  role               = "roles/iam.serviceAccountUser"
}

# Who may act as whom changes with operators and submitters. Of these accounts only: the project
# may have mightier ones.
resource "google_service_account_iam_member" "deploy_admin" {
  for_each = var.build == null ? {} : { for name, account in google_service_account.this : name => account.name }

  service_account_id = each.value
  member             = google_service_account.builder["deploy"].member
  role               = "roles/iam.serviceAccountAdmin"
}

# An ID token of its own, for the smoke test to call the proxy with.
resource "google_service_account_iam_member" "deploy_token" {
  count = local.build_count

  service_account_id = google_service_account.builder["deploy"].name
  member             = google_service_account.builder["deploy"].member
  role               = "roles/iam.serviceAccountOpenIdTokenCreator"
}

resource "google_cloud_run_v2_service_iam_member" "smoke" {
  count = local.build_count

  project  = local.project
  location = var.region
  name     = local.services["proxy"]
  member   = google_service_account.builder["deploy"].member
  role     = "roles/run.invoker"
}

# Workload Identity Federation: GitHub says which repository, branch and event a workflow runs
# for, and Google believes it for this repository only.
resource "google_iam_workload_identity_pool" "github" {
  count = local.build_count

  project                   = local.project
  workload_identity_pool_id = var.build.pool
  display_name              = "GitHub"
  description               = "Workflows of ${var.build.repository}"
}

resource "google_iam_workload_identity_pool_provider" "github" {
  #checkov:skip=CKV_GCP_125:The condition names one repository; which branch and event may deploy is in the mapping
  count = local.build_count

  project                            = local.project
  workload_identity_pool_id          = google_iam_workload_identity_pool.github[0].workload_identity_pool_id
  workload_identity_pool_provider_id = "github"
  display_name                       = "GitHub Actions"

  # Who takes over a name that was given up has another id.
  attribute_condition = join(" && ", compact([
    "assertion.repository == '${var.build.repository}'",
    var.build.repository_id == null ? "" : "assertion.repository_id == '${var.build.repository_id}'",
  ]))
  attribute_mapping = {
    # GitHub's own subject holds the branch's name, and Google takes 127 bytes.
    "google.subject" = "assertion.repository_id + ':' + assertion.run_id"
    # pull_request_target runs for the main branch too, with a stranger's words.
    "attribute.build" = "assertion.ref == 'refs/heads/${var.build.branch}' && assertion.event_name in ['push', 'workflow_dispatch'] ? 'deploy' : 'check'"
  }

  oidc {
    issuer_uri = "https://token.actions.githubusercontent.com"
  }
}

locals {
  # Which account Cloud Build's own triggers start a build as. A pull request's is not the one
  # that runs what the pull request says.
  starters = var.build == null ? {} : {
    check  = google_service_account.builder["start"].member
    deploy = google_service_account.builder["deploy"].member
  }
  workflows = {
    for build in keys(local.builds) :
    build => "principalSet://iam.googleapis.com/${google_iam_workload_identity_pool.github[0].name}/attribute.build/${build}"
  }
}

resource "google_project_iam_member" "workflow" {
  for_each = local.workflows

  project = local.project
  member  = each.value
  role    = google_project_iam_custom_role.build["starter"].name
}

# A build runs as the account that its starter may act as.
resource "google_service_account_iam_member" "starter" {
  count = local.build_count

  service_account_id = google_service_account.builder["check"].name
  member             = google_service_account.builder["start"].member
  role               = "roles/iam.serviceAccountUser"
}

resource "google_service_account_iam_member" "workflow" {
  for_each = local.workflows

  service_account_id = google_service_account.builder[each.key].name
  member             = each.value
  role               = "roles/iam.serviceAccountUser"
}

# Cloud Build's own connection to GitHub, and its triggers.
resource "google_secret_manager_secret_iam_member" "github_token" {
  count = local.trigger_count

  project   = local.project
  secret_id = split("/", var.build.token_secret)[3]
  member    = local.build_agent
  role      = "roles/secretmanager.secretAccessor"
}

resource "google_cloudbuildv2_connection" "github" {
  count = local.trigger_count

  project  = local.project
  location = var.region
  name     = "github"

  github_config {
    app_installation_id = var.build.app_installation_id

    authorizer_credential {
      oauth_token_secret_version = var.build.token_secret
    }
  }

  depends_on = [google_secret_manager_secret_iam_member.github_token]
}

resource "google_cloudbuildv2_repository" "github" {
  count = local.trigger_count

  project           = local.project
  location          = var.region
  name              = replace(var.build.repository, "/", "-")
  parent_connection = google_cloudbuildv2_connection.github[0].name
  remote_uri        = "https://github.com/${var.build.repository}.git"
}

# Each starts the build that the commit itself describes.
resource "google_cloudbuild_trigger" "build" {
  for_each = local.trigger_count == 0 ? {} : local.builds

  project         = local.project
  location        = var.region
  name            = "greenroom-${each.key}"
  description     = "Greenroom: ${each.value}"
  service_account = google_service_account.builder[each.key == "check" ? "start" : each.key].id

  approval_config {
    approval_required = each.key == "deploy" && var.build.approval
  }

  build {
    timeout = "10800s"

    step {
      name       = "gcr.io/google.com/cloudsdktool/google-cloud-cli:slim"
      entrypoint = "gcloud"
      args       = local.build_commands[each.key]
    }

    options {
      logging = "CLOUD_LOGGING_ONLY"
    }
  }

  repository_event_config {
    repository = google_cloudbuildv2_repository.github[0].id

    dynamic "pull_request" {
      for_each = each.key == "check" ? [var.build.branch] : []

      content {
        branch = "^${pull_request.value}$"
        # Strangers' pull requests wait for a word of who may write to the repository.
        comment_control = "COMMENTS_ENABLED_FOR_EXTERNAL_CONTRIBUTORS_ONLY"
      }
    }

    dynamic "push" {
      for_each = each.key == "deploy" ? [var.build.branch] : []

      content {
        branch = "^${push.value}$"
      }
    }
  }

  # A build must find all that its account may do.
  depends_on = [google_project_iam_member.builder, google_service_account_iam_member.deploy_act_as]
}

output "build" {
  description = "For a workflow on GitHub: whom to sign in as, and the command that starts a build. Null without builds."
  value = var.build == null ? null : {
    workload_identity_provider = google_iam_workload_identity_pool_provider.github[0].name
    service_accounts           = { for name, account in google_service_account.builder : name => account.email }
    commands = {
      for build, words in local.build_commands : build => join(" ", concat(["gcloud"], words))
    }
  }
}
