locals {
  # Account -> what runs as it. Each service has one of its own.
  accounts = {
    mlflow     = "MLflow, for people"
    mlflow-api = "MLflow, for programs"
    migrate    = "the job that brings MLflow's database to a new version's schema"
    predict    = "predict"
    promote    = "promote"
    proxy      = "proxy"
    scheduler  = "the Cloud Scheduler job that calls promote"
    trainer    = "training jobs"
    ui         = "the page"
  }

  members = { for name, account in google_service_account.this : name => account.member }
}

resource "google_service_account" "this" {
  for_each = local.accounts

  project      = local.project
  account_id   = "greenroom-${each.key}"
  display_name = "Greenroom: ${each.value}"
}

# IAP calls the services behind it as this one.
resource "google_project_service_identity" "iap" {
  provider = google-beta

  project = local.project
  service = "iap.googleapis.com"
}

# Uptime checks call the proxy as this one; in a new project it is there once it was asked for.
resource "google_project_service_identity" "monitoring" {
  provider = google-beta

  project = local.project
  service = "monitoring.googleapis.com"
}
