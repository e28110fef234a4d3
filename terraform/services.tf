locals {
  # Name in Cloud Run of each service that the table of callers knows, once it is there.
  services = merge(
    { predict = google_cloud_run_v2_service.predict.name },
    { for name, service in module.service : name => service.name },
    { for name, service in module.mlflow : name => service.name },
  )
}

module "service" {
  source = "./service"
  for_each = {
    # Promote's calls end after 60 seconds.
    promote = { concurrency = 10, health_path = "/health", timeout_seconds = 75 }
    # An export of all predictions is one request, which may take long.
    proxy = { concurrency = local.proxy_concurrency, health_path = "/health", timeout_seconds = 3600 }
    # The page's WebSocket is one request, and its state lives in one instance.
    ui = { concurrency = 80, health_path = "/_stcore/health", timeout_seconds = 3600 }
  }

  name    = each.key
  project = local.project
  region  = var.region

  concurrency         = each.value.concurrency
  deletion_protection = var.deletion_protection
  environment         = local.environment[each.key]
  health_path         = each.value.health_path
  iap                 = contains(local.behind_iap, each.key)
  image               = local.image[each.key]
  service_account     = google_service_account.this[each.key].email
  session_affinity    = each.key == "ui"
  size                = local.size.services[each.key]
  timeout_seconds     = each.value.timeout_seconds
}

# One image and database, two services: IAP replaces the caller's identity and refuses
# the tokens of programs.
module "mlflow" {
  source   = "./service"
  for_each = toset(["mlflow", "mlflow-api"])

  name    = each.key
  project = local.project
  region  = var.region

  args                = ["serve"]
  deletion_protection = var.deletion_protection
  environment         = local.environment.mlflow[each.key]
  iap                 = contains(local.behind_iap, each.key)
  image               = local.image.mlflow
  secrets             = local.database_secrets
  service_account     = google_service_account.this[each.key].email
  size                = local.size.services[each.key]
  subnetwork          = module.network.subnetwork
  timeout_seconds     = 300

  # A new version must find its own schema.
  depends_on = [
    google_cloud_run_v2_job.migrate,
    time_sleep.grants,
  ]
}

# Runs to its end when it is made and at each change of the image, before MLflow serves.
resource "google_cloud_run_v2_job" "migrate" {
  provider = google-beta

  project  = local.project
  location = var.region
  name     = "mlflow-migrate"

  # It holds nothing. Google's provider marks a job whose first run failed to be made anew, which
  # protection would refuse for ever: it is the state's that counts, not the configuration's.
  deletion_protection = false
  launch_stage        = "BETA"
  run_execution_token = substr(sha256("${coalesce(local.image.mlflow, "none")} ${var.database_password_version}"), 0, 16)

  template {
    template {
      service_account = google_service_account.this["migrate"].email
      max_retries     = 1
      timeout         = "1800s"

      containers {
        image = local.image.mlflow
        args  = ["migrate"]

        resources {
          limits = {
            cpu    = "1"
            memory = "2Gi"
          }
        }

        dynamic "env" {
          for_each = local.database_environment

          content {
            name  = env.key
            value = env.value
          }
        }

        dynamic "env" {
          for_each = local.database_secrets

          content {
            name = env.key

            value_source {
              secret_key_ref {
                secret  = env.value.secret
                version = env.value.version
              }
            }
          }
        }
      }

      vpc_access {
        egress = "PRIVATE_RANGES_ONLY"

        network_interfaces {
          subnetwork = module.network.subnetwork
        }
      }
    }
  }

  lifecycle {
    # Google answers with the stage that is needed, not with the one that was asked for.
    ignore_changes = [launch_stage]

    precondition {
      condition     = local.image.mlflow != null
      error_message = "There is no image for mlflow: build them, then give their digests in the variable images (terraform/README.md says how)."
    }
  }

  depends_on = [time_sleep.grants]
}
