resource "google_cloud_run_v2_service" "this" {
  provider = google-beta

  project  = var.project
  location = var.region
  name     = var.name

  deletion_protection = var.deletion_protection
  ingress             = "INGRESS_TRAFFIC_ALL"
  iap_enabled         = var.iap
  launch_stage        = var.iap ? "BETA" : "GA"

  template {
    service_account                  = var.service_account
    timeout                          = "${var.timeout_seconds}s"
    max_instance_request_concurrency = var.concurrency
    session_affinity                 = var.session_affinity

    scaling {
      # Cloud Run leaves a zero out, and Terraform would write it at each apply.
      min_instance_count = var.size.min > 0 ? var.size.min : null
      max_instance_count = var.size.max
    }

    containers {
      image = var.image
      args  = var.args

      resources {
        limits = {
          cpu    = tostring(var.size.cpu)
          memory = var.size.memory
        }
        cpu_idle          = true
        startup_cpu_boost = true
      }

      dynamic "env" {
        for_each = var.environment

        content {
          name  = env.key
          value = env.value
        }
      }

      dynamic "env" {
        for_each = var.secrets

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

      startup_probe {
        period_seconds    = 5
        timeout_seconds   = 4
        failure_threshold = 48

        http_get {
          path = var.health_path
        }
      }

      liveness_probe {
        period_seconds    = 30
        timeout_seconds   = 10
        failure_threshold = 3

        http_get {
          path = var.health_path
        }
      }
    }

    dynamic "vpc_access" {
      for_each = var.subnetwork[*]

      content {
        egress = "PRIVATE_RANGES_ONLY"

        network_interfaces {
          subnetwork = vpc_access.value
        }
      }
    }
  }

  lifecycle {
    # Google answers with the stage that is needed, not with the one that was asked for.
    ignore_changes = [launch_stage]

    precondition {
      condition     = var.image != null
      error_message = "There is no image for ${var.name}: build them, then give their digests in the variable images (terraform/README.md says how)."
    }
  }
}
