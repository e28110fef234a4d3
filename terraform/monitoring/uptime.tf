# Cloud Run's deterministic names: reading a service's own would tie this to what promote writes.
locals {
  hosts = {
    for key, name in var.services : key => "${name}-${var.project_number}.${var.region}.run.app"
  }
  # What Cloud Run's front end answers before any container sees the request.
  closed_doors = {
    mlflow_api = 403
    predict    = 403
    promote    = 403
  }
  agent = "service-${var.project_number}@gcp-sa-monitoring-notification.iam.gserviceaccount.com"
}

resource "google_monitoring_uptime_check_config" "proxy" {
  project      = var.project
  display_name = "${var.prefix}: proxy answers"
  period       = "${var.uptime_period_seconds}s"
  # As long as a proxy without an instance takes to start.
  timeout            = "30s"
  log_check_failures = true

  http_check {
    path         = "/health"
    port         = 443
    use_ssl      = true
    validate_ssl = true

    service_agent_authentication {
      type = "OIDC_TOKEN"
    }

    accepted_response_status_codes {
      status_value = 200
    }
  }

  monitored_resource {
    type   = "uptime_url"
    labels = { host = local.hosts.proxy, project_id = var.project }
  }

  depends_on = [google_cloud_run_v2_service_iam_member.uptime]
}

# Cloud Monitoring's own agent, and nobody else, beside the table of who may call whom.
resource "google_cloud_run_v2_service_iam_member" "uptime" {
  project  = var.project
  location = var.region
  name     = var.services.proxy
  role     = "roles/run.invoker"
  member   = "serviceAccount:${local.agent}"
}

# A stranger is refused. No container is started for these.
resource "google_monitoring_uptime_check_config" "closed" {
  for_each = local.closed_doors

  project            = var.project
  display_name       = "${var.prefix}: ${var.services[each.key]} refuses strangers"
  period             = "900s"
  timeout            = "10s"
  log_check_failures = true

  http_check {
    path         = "/health"
    port         = 443
    use_ssl      = true
    validate_ssl = true

    accepted_response_status_codes {
      status_value = each.value
    }
  }

  monitored_resource {
    type   = "uptime_url"
    labels = { host = local.hosts[each.key], project_id = var.project }
  }
}
