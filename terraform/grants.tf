locals {
  role = { for name, role in google_project_iam_custom_role.this : name => role.name }

  # What has no policy of its own can only be granted on the project: metrics, Cloud Scheduler's
  # jobs, Vertex AI's jobs and the log. Firestore's databases neither, but a condition names one.
  this_database = {
    title       = "greenroom-database"
    description = "Greenroom's Firestore database only"
    expression  = "resource.name == \"projects/${var.project}/databases/${google_firestore_database.this.name}\""
  }
  project_grants = merge(concat(
    [{
      "promote metrics_reader" = { member = local.members.promote, role = local.role.metrics_reader, condition = null }
      "promote ledger_writer"  = { member = local.members.promote, role = local.role.ledger_writer, condition = local.this_database }
      "proxy datastore.user"   = { member = local.members.proxy, role = "roles/datastore.user", condition = local.this_database }
    }],
    [
      for operator in var.operators : {
        "${operator} schedule_operator" = { member = operator, role = local.role.schedule_operator, condition = null }
        "${operator} inspector"         = { member = operator, role = local.role.inspector, condition = null }
        "${operator} datastore.viewer"  = { member = operator, role = "roles/datastore.viewer", condition = local.this_database }
      }
    ],
    [
      for submitter in var.submitters : {
        "${submitter} aiplatform.user"      = { member = submitter, role = "roles/aiplatform.user", condition = null }
        "${submitter} logging.viewer"       = { member = submitter, role = "roles/logging.viewer", condition = null }
        "${submitter} serviceUsageConsumer" = { member = submitter, role = "roles/serviceusage.serviceUsageConsumer", condition = null }
      }
    ],
  )...)

  bucket_grants = {
    # A model that is missing must be told from one that may not be read: that takes the
    # permission to list.
    "artifacts mlflow"     = { role = "roles/storage.objectViewer" }
    "artifacts mlflow-api" = { role = "roles/storage.objectViewer" }
    "artifacts promote"    = { role = "roles/storage.objectViewer" }
    "artifacts trainer"    = { role = "roles/storage.objectUser" }
    "data trainer"         = { role = "roles/storage.objectViewer" }
    "serving predict"      = { role = "roles/storage.legacyObjectReader" }
    # A bundle has its digest's name: promote may add one, and neither change nor delete any.
    "serving promote"         = { role = "roles/storage.objectViewer" }
    "serving promote creator" = { role = "roles/storage.objectCreator" }
    "staging trainer"         = { role = "roles/storage.objectUser" }
  }

  act_as = merge(
    { "predict promote" = { account = "predict", member = local.members.promote } },
    { for submitter in var.submitters : "trainer ${submitter}" => { account = "trainer", member = submitter } },
  )

  secret_readers = ["migrate", "mlflow", "mlflow-api"]

  # Behind IAP people come in, and IAP's own account in their place.
  behind_iap = setsubtract(local.callers.people, var.public_services)

  invokers = merge(concat(
    [
      for service, names in local.callers.invokers : {
        for name in names : "${service} ${name}" => { service = service, member = local.members[name] }
      }
    ],
    [{ for service in local.behind_iap : "${service} iap" => { service = service, member = google_project_service_identity.iap.member } }],
    [{ for caller in var.api_callers : "proxy ${caller}" => { service = "proxy", member = caller } }],
    [
      for service in ["mlflow-api", "promote"] : {
        for operator in var.operators : "${service} ${operator}" => { service = service, member = operator }
      }
    ],
    [{ for service in var.public_services : "${service} everybody" => { service = service, member = "allUsers" } }],
  )...)
}

resource "google_project_iam_member" "this" {
  for_each = local.project_grants

  project = local.project
  member  = each.value.member
  role    = each.value.role

  dynamic "condition" {
    for_each = each.value.condition[*]

    content {
      title       = condition.value.title
      description = condition.value.description
      expression  = condition.value.expression
    }
  }
}

resource "google_storage_bucket_iam_member" "this" {
  for_each = local.bucket_grants

  bucket = google_storage_bucket.this[split(" ", each.key)[0]].name
  member = local.members[split(" ", each.key)[1]]
  role   = each.value.role
}

resource "google_artifact_registry_repository_iam_member" "promote" {
  project    = local.project
  location   = google_artifact_registry_repository.images.location
  repository = google_artifact_registry_repository.images.name
  member     = local.members.promote
  # Cloud Run asks whether who updates a service may read its image.
  role = "roles/artifactregistry.reader"
}

resource "google_service_account_iam_member" "act_as" {
  for_each = local.act_as

  service_account_id = google_service_account.this[each.value.account].name
  member             = each.value.member
  role               = "roles/iam.serviceAccountUser"
}

resource "google_secret_manager_secret_iam_member" "database_password" {
  for_each = toset(local.secret_readers)

  project   = local.project
  secret_id = google_secret_manager_secret.database_password.secret_id
  member    = local.members[each.key]
  role      = "roles/secretmanager.secretAccessor"
}

# A grant holds some time after it was made, and a container that may not read its secret does
# not start.
resource "time_sleep" "grants" {
  create_duration = "60s"

  depends_on = [google_secret_manager_secret_iam_member.database_password]
}

resource "google_cloud_run_v2_service_iam_member" "promoter" {
  project  = local.project
  location = var.region
  name     = google_cloud_run_v2_service.predict.name
  member   = local.members.promote
  role     = local.role.promoter
}

resource "google_cloud_run_v2_service_iam_member" "invoker" {
  for_each = local.invokers

  project  = local.project
  location = var.region
  name     = local.services[each.value.service]
  member   = each.value.member
  role     = "roles/run.invoker"
}

resource "google_iap_web_cloud_run_service_iam_member" "people" {
  for_each = { for pair in setproduct(local.behind_iap, var.people) : join(" ", pair) => pair }

  project                = local.project
  location               = var.region
  cloud_run_service_name = local.services[each.value[0]]
  member                 = each.value[1]
  role                   = "roles/iap.httpsResourceAccessor"
}
