# Guards against a grant that nobody asked for: each account's roles are an exact list. Who needs which,
# and for what call, is in ../tests/terraform/test_roles.py.

mock_provider "google" {
  override_data {
    target = data.google_project.this
    values = { number = "123456789012" }
  }
}

mock_provider "google-beta" {}

variables {
  project = "my-project-123"
  images = {
    mlflow  = "host/repository/mlflow@sha256:0000000000000000000000000000000000000000000000000000000000000001"
    predict = "host/repository/predict@sha256:0000000000000000000000000000000000000000000000000000000000000002"
    promote = "host/repository/promote@sha256:0000000000000000000000000000000000000000000000000000000000000003"
    proxy   = "host/repository/proxy@sha256:0000000000000000000000000000000000000000000000000000000000000004"
    trainer = "host/repository/trainer@sha256:0000000000000000000000000000000000000000000000000000000000000005"
    ui      = "host/repository/ui@sha256:0000000000000000000000000000000000000000000000000000000000000006"
  }
}

run "services" {
  command = plan

  assert {
    condition = toset(keys(google_project_iam_member.this)) == toset([
      "promote ledger_writer",
      "promote metrics_reader",
      "proxy datastore.user",
    ])
    error_message = "Something else is granted on the project."
  }

  assert {
    condition = alltrue([
      for key in ["promote ledger_writer", "proxy datastore.user"] :
      google_project_iam_member.this[key].condition[0].expression == "resource.name == \"projects/my-project-123/databases/(default)\""
    ])
    error_message = "Firestore is granted for one database only."
  }

  assert {
    condition = { for key, grant in google_storage_bucket_iam_member.this : key => grant.role } == {
      "artifacts mlflow"        = "roles/storage.objectViewer"
      "artifacts mlflow-api"    = "roles/storage.objectViewer"
      "artifacts promote"       = "roles/storage.objectViewer"
      "artifacts trainer"       = "roles/storage.objectUser"
      "data trainer"            = "roles/storage.objectViewer"
      "serving predict"         = "roles/storage.legacyObjectReader"
      "serving promote"         = "roles/storage.objectViewer"
      "serving promote creator" = "roles/storage.objectCreator"
      "staging trainer"         = "roles/storage.objectUser"
    }
    error_message = "Somebody else may use a bucket, or in another way."
  }

  assert {
    condition     = keys(google_service_account_iam_member.act_as) == ["predict promote"]
    error_message = "Only promote acts as predict."
  }

  assert {
    condition     = toset(keys(google_secret_manager_secret_iam_member.database_password)) == toset(["migrate", "mlflow", "mlflow-api"])
    error_message = "The password is read by what connects to the database only."
  }

  assert {
    condition     = google_artifact_registry_repository_iam_member.promote.role == "roles/artifactregistry.reader"
    error_message = "promote reads images only."
  }

  assert {
    condition     = toset(keys(google_service_account.this)) == toset(concat(keys(local.callers.invokers), ["migrate", "scheduler", "trainer"]))
    error_message = "Each service has an account of its own."
  }
}

run "custom_roles" {
  command = plan

  assert {
    condition     = length(setintersection(flatten([for role in google_project_iam_custom_role.this : role.permissions]), ["datastore.entities.delete", "run.services.create", "run.services.delete", "run.services.setIamPolicy", "storage.objects.get"])) == 0
    error_message = "A role of our own allows what Google's too wide ones do."
  }

  assert {
    condition     = google_project_iam_custom_role.this["metrics_reader"].permissions == toset(["monitoring.timeSeries.list"])
    error_message = "promote reads time series, and nothing else of Cloud Monitoring."
  }
}

run "people" {
  command = plan

  variables {
    operators  = ["user:ada@example.com"]
    submitters = ["user:bob@example.com"]
  }

  assert {
    condition = setsubtract(keys(google_project_iam_member.this), ["promote ledger_writer", "promote metrics_reader", "proxy datastore.user"]) == toset([
      "user:ada@example.com datastore.viewer",
      "user:ada@example.com inspector",
      "user:ada@example.com schedule_operator",
      "user:bob@example.com aiplatform.user",
      "user:bob@example.com logging.viewer",
      "user:bob@example.com serviceUsageConsumer",
    ])
    error_message = "People are granted something else on the project."
  }

  assert {
    condition     = toset(keys(google_service_account_iam_member.act_as)) == toset(["predict promote", "trainer user:bob@example.com"])
    error_message = "Who starts a training acts as trainer, and as nobody else."
  }
}

run "builds" {
  command = plan

  variables {
    build = { repository = "example/greenroom", repository_id = 7 }
  }

  assert {
    condition     = google_iam_workload_identity_pool_provider.github[0].attribute_condition == "assertion.repository == 'example/greenroom' && assertion.repository_id == '7'"
    error_message = "Another repository that takes over the name would be believed."
  }

  assert {
    condition     = length(setintersection(google_project_iam_custom_role.build["builder"].permissions, ["secretmanager.versions.access", "storage.objects.get"])) == 0
    error_message = "A deployment reads secrets or objects."
  }

  assert {
    condition     = !contains(keys(google_project_iam_member.builder), "deploy budget") && !contains(google_project_iam_custom_role.build["planner"].permissions, "billing.resourcebudgets.read")
    error_message = "Where there is no budget, nobody need read one."
  }
}

run "builds_with_a_budget" {
  command = plan

  variables {
    budget = { amount = 50, billing_account = "012345-6789AB-CDEF01" }
    build  = { repository = "example/greenroom" }
  }

  assert {
    condition     = google_project_iam_member.builder["deploy budget"].role == "roles/billing.projectCostsManager" && contains(google_project_iam_custom_role.build["planner"].permissions, "billing.resourcebudgets.read")
    error_message = "A build could not read the budget, and each would fail."
  }
}
