# Terraform makes the service; promote decides which model it serves. It starts with none.
# Not by the module service/: what is ignored can't be switched by a variable.
resource "google_cloud_run_v2_service" "predict" {
  project  = local.project
  location = var.region
  name     = "predict"

  deletion_protection = var.deletion_protection
  ingress             = "INGRESS_TRAFFIC_ALL"

  template {
    service_account                  = google_service_account.this["predict"].email
    timeout                          = "60s"
    max_instance_request_concurrency = 80

    scaling {
      # Cloud Run leaves a zero out, and Terraform would write it at each apply.
      min_instance_count = local.size.services.predict.min > 0 ? local.size.services.predict.min : null
      max_instance_count = local.size.services.predict.max
    }

    containers {
      image = local.image.predict

      resources {
        limits = {
          cpu    = tostring(local.size.services.predict.cpu)
          memory = local.size.services.predict.memory
        }
        cpu_idle          = true
        startup_cpu_boost = true
      }

      dynamic "env" {
        for_each = local.predict_environment

        content {
          name  = env.key
          value = env.value
        }
      }

      # It listens once the model is there and verified.
      startup_probe {
        period_seconds    = 1
        timeout_seconds   = 1
        failure_threshold = 240

        http_get {
          path = "/health"
        }
      }

      liveness_probe {
        period_seconds    = 30
        timeout_seconds   = 10
        failure_threshold = 3

        http_get {
          path = "/health"
        }
      }
    }
  }

  lifecycle {
    # What promote writes, and the clients' names that Cloud Run keeps with each write. Google's
    # provider leaves others' annotations alone; one that derives effective_annotations from
    # annotations would take promote's memory away.
    ignore_changes = [
      annotations,
      template[0].containers[0].args,
      template[0].labels,
      traffic,
      client,
      client_version,
    ]

    precondition {
      condition     = local.image.predict != null
      error_message = "There is no image for predict: build them, then give their digests in the variable images (terraform/README.md says how)."
    }
  }
}
