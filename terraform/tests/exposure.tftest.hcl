# Guards against a door that opens for more than it is meant to: to everybody, or to a caller that
# the table does not name.

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

run "nobody_unnamed" {
  command = plan

  assert {
    condition = toset(keys(google_cloud_run_v2_service_iam_member.invoker)) == toset([
      "mlflow iap",
      "mlflow-api promote",
      "mlflow-api trainer",
      "predict promote",
      "predict proxy",
      "promote scheduler",
      "proxy promote",
      "proxy ui",
      "ui iap",
    ])
    error_message = "Somebody else may call a service, or somebody may no longer."
  }

  assert {
    condition     = alltrue([for grant in google_cloud_run_v2_service_iam_member.invoker : grant.role == "roles/run.invoker"])
    error_message = "A caller has more than the role of invoker."
  }

  assert {
    condition     = google_cloud_run_v2_service.predict.invoker_iam_disabled != true
    error_message = "predict does not look at who calls."
  }

  assert {
    condition     = alltrue([for bucket in google_storage_bucket.this : bucket.public_access_prevention == "enforced" && bucket.uniform_bucket_level_access])
    error_message = "A bucket may be opened to the public."
  }

  assert {
    condition     = google_sql_database_instance.mlflow.settings[0].ip_configuration[0].ipv4_enabled == false
    error_message = "The database has a public address."
  }
}

run "named_people_and_programs" {
  command = plan

  variables {
    api_callers = ["serviceAccount:app@other-project.iam.gserviceaccount.com"]
    operators   = ["user:ada@example.com"]
    people      = ["group:reviewers@example.com"]
  }

  assert {
    condition = toset([for key in keys(google_cloud_run_v2_service_iam_member.invoker) : key if length(regexall("[:]", key)) > 0]) == toset([
      "mlflow-api user:ada@example.com",
      "promote user:ada@example.com",
      "proxy serviceAccount:app@other-project.iam.gserviceaccount.com",
    ])
    error_message = "Those who are named may call something else."
  }

  assert {
    condition     = toset(keys(google_iap_web_cloud_run_service_iam_member.people)) == toset(["mlflow group:reviewers@example.com", "ui group:reviewers@example.com"])
    error_message = "People come in through IAP, to MLflow and the page only."
  }
}

run "public_where_the_variable_says_so" {
  command = plan

  variables {
    people          = ["group:reviewers@example.com"]
    public_services = ["ui"]
  }

  assert {
    condition     = [for key, grant in local.invokers : key if endswith(key, " everybody")] == ["ui everybody"] && local.invokers["ui everybody"].member == "allUsers"
    error_message = "Everybody may call something else than the page."
  }

  assert {
    condition     = toset(keys(google_iap_web_cloud_run_service_iam_member.people)) == toset(["mlflow group:reviewers@example.com"])
    error_message = "A public page needs no sign-in; MLflow still does."
  }
}
