locals {
  apis = toset([
    "aiplatform.googleapis.com",
    "artifactregistry.googleapis.com",
    "billingbudgets.googleapis.com",
    "cloudbuild.googleapis.com",
    "cloudresourcemanager.googleapis.com",
    "cloudscheduler.googleapis.com",
    "compute.googleapis.com",
    "containeranalysis.googleapis.com",
    "firestore.googleapis.com",
    "iam.googleapis.com",
    "iamcredentials.googleapis.com",
    "iap.googleapis.com",
    "logging.googleapis.com",
    "monitoring.googleapis.com",
    "run.googleapis.com",
    "secretmanager.googleapis.com",
    "servicenetworking.googleapis.com",
    "serviceusage.googleapis.com",
    "sqladmin.googleapis.com",
    "storage.googleapis.com",
    "sts.googleapis.com",
  ])

  # The project, once its APIs answer: whatever names it by this waits for them.
  project = time_sleep.apis.triggers.project
}

resource "google_project_service" "this" {
  for_each = local.apis

  project = var.project
  service = each.key

  # Something else in the project may use it.
  disable_on_destroy = false
}

# An API answers some time after it was enabled.
resource "time_sleep" "apis" {
  create_duration = "90s"
  triggers        = { project = var.project }

  depends_on = [google_project_service.this]
}
