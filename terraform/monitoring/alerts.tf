# Conditions in PromQL, which name metrics without asking whether they are there: a project from
# empty has sent none yet. Conditions of other kinds on new metrics from logs are refused for some
# minutes (https://github.com/hashicorp/terraform-provider-google/issues/11102); whether on
# Google's own metrics too, nobody has tried here.
locals {
  requests  = "run_googleapis_com:request_count"
  latencies = "run_googleapis_com:request_latencies_bucket"
  labels = {
    for key, name in var.services : key =>
    "monitored_resource=\"cloud_run_revision\",location=\"${var.region}\",service_name=\"${name}\""
  }
  predict_requests = "sum(increase(${local.requests}{${local.labels.predict}}[10m]))"
  # Of a project, not of a service account: "PROJECT:INSTANCE".
  database = "monitored_resource=\"cloudsql_database\",database_id=\"${var.project}:${var.database_instance}\""

  alerts = {
    predict_errors = {
      title    = "predict answers with errors"
      severity = "CRITICAL"
      query    = <<-EOT
        sum(increase(${local.requests}{${local.labels.predict},response_code_class="5xx"}[10m]))
          / ${local.predict_requests} > ${var.thresholds.error_share}
          and ${local.predict_requests} >= ${var.thresholds.min_requests}
      EOT
      advice   = <<-EOT
        Which version and revision: the dashboard, and the logs of ${var.services.predict} with
        severity ERROR. Go back with `greenroom rollback --reason "errors" --wait`; where only the
        code is new, apply the image before.
      EOT
    }
    predict_latency = {
      title    = "predict is slow"
      severity = "WARNING"
      query    = <<-EOT
        histogram_quantile(0.95, sum by (le) (increase(${local.latencies}{${local.labels.predict}}[10m])))
          > ${var.thresholds.latency_ms}
          and ${local.predict_requests} >= ${var.thresholds.min_requests}
      EOT
      advice   = <<-EOT
        Cold starts, or more requests than instances: compare instances and CPU on the dashboard,
        then raise the minimum or the maximum number of instances. If it came with a version,
        `greenroom rollback`.
      EOT
    }
    promote_silent = {
      title    = "promote does not tick"
      severity = "WARNING"
      # A new installation has not ticked yet when this is first asked.
      duration = "600s"
      query    = <<-EOT
        (sum(increase(${local.requests}{${local.labels.promote},response_code_class="2xx"}[${var.thresholds.silent_minutes}m])) or vector(0)) < 1
      EOT
      advice   = <<-EOT
        What is served stays served, but no version is rolled out or taken back. `greenroom status`
        says whether the job ${var.scheduler_job} is paused (`greenroom resume`) or what promote
        can't reach; `greenroom doctor` checks the rest.
      EOT
    }
    database_disk = {
      title    = "MLflow's database fills its disk"
      severity = "WARNING"
      query    = "max(cloudsql_googleapis_com:database_disk_utilization{${local.database}}) > ${var.thresholds.database_disk}"
      advice   = <<-EOT
        Delete runs that nobody needs (`mlflow gc`), or give ${var.database_instance} more disk. A
        full disk stops MLflow, and with it every promotion.
      EOT
    }
    database_memory = {
      title    = "MLflow's database runs out of memory"
      severity = "WARNING"
      query    = "avg_over_time(max(cloudsql_googleapis_com:database_memory_utilization{${local.database}})[15m:1m]) > ${var.thresholds.database_memory}"
      advice   = <<-EOT
        Give ${var.database_instance} a larger tier, or its clients fewer connections: each
        MLflow instance keeps a pool.
      EOT
    }
  }
}

resource "google_monitoring_alert_policy" "query" {
  for_each = local.alerts

  project               = var.project
  display_name          = "${var.prefix}: ${each.value.title}"
  combiner              = "OR"
  severity              = each.value.severity
  notification_channels = local.channels

  conditions {
    display_name = each.value.title

    condition_prometheus_query_language {
      query                     = trimspace(each.value.query)
      duration                  = try(each.value.duration, "120s")
      evaluation_interval       = "60s"
      disable_metric_validation = true
    }
  }

  alert_strategy {
    auto_close = "86400s"
  }

  documentation {
    content   = each.value.advice
    mime_type = "text/markdown"
  }
}

resource "google_monitoring_alert_policy" "rollout" {
  project               = var.project
  display_name          = "${var.prefix}: a rollout was rolled back"
  combiner              = "OR"
  severity              = "WARNING"
  notification_channels = local.channels

  conditions {
    display_name = "promote gave a version up"

    condition_matched_log {
      filter = <<-EOT
        ${local.services_filter.promote}
        jsonPayload.logger="root"
        jsonPayload.message=~"^(block|back): "
      EOT
      label_extractors = {
        action = local.rollout_label
        reason = "EXTRACT(jsonPayload.message)"
      }
    }
  }

  alert_strategy {
    auto_close = "86400s"

    notification_rate_limit {
      period = "300s"
    }
  }

  documentation {
    content   = <<-EOT
      $${log.extracted_label.reason}

      What was good before is served. `greenroom history` tells what the version failed at;
      it is not tried again until its tags in MLflow, the code or the policy change.
    EOT
    mime_type = "text/markdown"
  }
}

resource "google_monitoring_alert_policy" "uptime" {
  for_each = merge(
    { proxy = google_monitoring_uptime_check_config.proxy },
    google_monitoring_uptime_check_config.closed,
  )

  project               = var.project
  display_name          = each.key == "proxy" ? "${var.prefix}: proxy does not answer" : "${var.prefix}: ${var.services[each.key]} lets strangers in, or is gone"
  combiner              = "OR"
  severity              = "CRITICAL"
  notification_channels = local.channels

  conditions {
    display_name = each.value.display_name

    condition_threshold {
      filter = join(" AND ", [
        "metric.type=\"monitoring.googleapis.com/uptime_check/check_passed\"",
        "metric.labels.check_id=\"${each.value.uptime_check_id}\"",
        "resource.type=\"uptime_url\"",
      ])
      comparison      = "COMPARISON_GT"
      threshold_value = 1
      duration        = "60s"

      aggregations {
        alignment_period     = "1200s"
        per_series_aligner   = "ALIGN_NEXT_OLDER"
        cross_series_reducer = "REDUCE_COUNT_FALSE"
        group_by_fields      = ["resource.label.host"]
      }
    }
  }

  alert_strategy {
    auto_close = "86400s"
  }

  documentation {
    content   = "From two places of the world or more. `greenroom doctor` says which door, and what to do."
    mime_type = "text/markdown"
  }
}
