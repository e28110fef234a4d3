locals {
  slos = {
    availability = {
      service = "proxy"
      title   = "the proxy answers without an error of its own"
      goal    = var.slo.availability
    }
    latency = {
      service = "predict"
      title   = "predict answers within ${var.slo.latency_ms} ms"
      goal    = var.slo.latency
    }
  }
  slo_filters = {
    for key, name in var.services : key => join(" AND ", [
      "resource.type=\"cloud_run_revision\"",
      "resource.labels.location=\"${var.region}\"",
      "resource.labels.service_name=\"${name}\"",
    ])
  }
}

resource "google_monitoring_custom_service" "service" {
  for_each = local.slos

  project      = var.project
  service_id   = "${var.prefix}-${each.value.service}"
  display_name = "${var.prefix}: ${each.value.service}"
}

resource "google_monitoring_slo" "availability" {
  project             = var.project
  service             = google_monitoring_custom_service.service["availability"].service_id
  slo_id              = "availability"
  display_name        = local.slos.availability.title
  goal                = local.slos.availability.goal
  rolling_period_days = var.slo.period_days

  request_based_sli {
    good_total_ratio {
      bad_service_filter   = "metric.type=\"run.googleapis.com/request_count\" AND ${local.slo_filters.proxy} AND metric.labels.response_code_class=\"5xx\""
      total_service_filter = "metric.type=\"run.googleapis.com/request_count\" AND ${local.slo_filters.proxy}"
    }
  }
}

resource "google_monitoring_slo" "latency" {
  project             = var.project
  service             = google_monitoring_custom_service.service["latency"].service_id
  slo_id              = "latency"
  display_name        = local.slos.latency.title
  goal                = local.slos.latency.goal
  rolling_period_days = var.slo.period_days

  request_based_sli {
    distribution_cut {
      distribution_filter = "metric.type=\"run.googleapis.com/request_latencies\" AND ${local.slo_filters.predict}"

      range {
        max = var.slo.latency_ms
      }
    }
  }
}

# Ten times as fast as the error budget allows: in an hour, a seventieth of four weeks' is gone.
resource "google_monitoring_alert_policy" "burn" {
  for_each = {
    availability = google_monitoring_slo.availability.name
    latency      = google_monitoring_slo.latency.name
  }

  project               = var.project
  display_name          = "${var.prefix}: the error budget burns (${each.key})"
  combiner              = "AND"
  severity              = "WARNING"
  notification_channels = local.channels

  dynamic "conditions" {
    for_each = { "in an hour" = "3600s", "in five minutes" = "300s" }

    content {
      display_name = "${local.slos[each.key].title}: ten times too many exceptions ${conditions.key}"

      condition_threshold {
        filter          = "select_slo_burn_rate(\"${each.value}\", \"${conditions.value}\")"
        comparison      = "COMPARISON_GT"
        threshold_value = 10
        duration        = "0s"
      }
    }
  }

  alert_strategy {
    auto_close = "86400s"
  }

  documentation {
    content   = "The objective: ${local.slos[each.key].title}, in ${local.slos[each.key].goal * 100} % of the requests of ${var.slo.period_days} days."
    mime_type = "text/markdown"
  }
}
