locals {
  metric_names = {
    for key, metric in {
      answers       = google_logging_metric.answers
      predictions   = google_logging_metric.predictions
      rollouts      = google_logging_metric.rollouts
      ticks         = google_logging_metric.ticks
      unknown_share = google_logging_metric.unknown_share
    } : key => "logging_googleapis_com:user_${replace(metric.name, "/[^a-zA-Z0-9]/", "_")}"
  }
  # A metric from logs may have more than one kind of resource: each query says which.
  of_services  = "monitored_resource=\"cloud_run_revision\""
  all_services = "${local.of_services},location=\"${var.region}\",service_name=~\"${join("|", sort(values(var.services)))}\""

  charts = [
    {
      title = "Traffic by revision of predict"
      unit  = "requests/s"
      lines = {
        "$${labels.revision_name}" = "sum by (revision_name) (rate(${local.requests}{${local.labels.predict}}[$${__interval}]))"
      }
    },
    {
      title = "Traffic by model version"
      unit  = "predictions/s"
      lines = {
        "version $${labels.model_version}" = "sum by (model_version) (rate(${local.metric_names.predictions}{${local.of_services}}[$${__interval}]))"
      }
    },
    {
      title = "Answers by class of status"
      unit  = "requests/s"
      lines = {
        "$${labels.service_name} $${labels.response_code_class}" = "sum by (service_name, response_code_class) (rate(${local.requests}{${local.all_services}}[$${__interval}]))"
      }
    },
    {
      title = "Latency of predict and the proxy"
      unit  = "ms"
      lines = {
        for quantile in [0.5, 0.95, 0.99] : "$${labels.service_name} p${quantile * 100}" =>
        "histogram_quantile(${quantile}, sum by (le, service_name) (increase(${local.latencies}{monitored_resource=\"cloud_run_revision\",location=\"${var.region}\",service_name=~\"${var.services.predict}|${var.services.proxy}\"}[$${__interval}])))"
      }
    },
    {
      title = "CPU, 95th percentile of instances"
      unit  = "share"
      lines = {
        "$${labels.service_name}" = "histogram_quantile(0.95, sum by (le, service_name) (increase(run_googleapis_com:container_cpu_utilizations_bucket{${local.all_services}}[$${__interval}])))"
      }
    },
    {
      title = "Memory, 95th percentile of instances"
      unit  = "share"
      lines = {
        "$${labels.service_name}" = "histogram_quantile(0.95, sum by (le, service_name) (increase(run_googleapis_com:container_memory_utilizations_bucket{${local.all_services}}[$${__interval}])))"
      }
    },
    {
      title = "Correctness: users who agree with the model"
      unit  = "share"
      lines = {
        "version $${labels.model_version}" = "sum by (model_version) (increase(${local.metric_names.answers}{${local.of_services},agreed=\"true\"}[1h])) / sum by (model_version) (increase(${local.metric_names.answers}{${local.of_services}}[1h]))"
      }
    },
    {
      title = "Unknown words: mean share of a text's n-grams"
      unit  = "share"
      lines = {
        "version $${labels.model_version}" = "sum by (model_version) (increase(${local.metric_names.unknown_share}_sum{${local.of_services}}[1h])) / sum by (model_version) (increase(${local.metric_names.unknown_share}_count{${local.of_services}}[1h]))"
      }
    },
    {
      title = "What promote does"
      unit  = "actions in an hour"
      lines = {
        "$${labels.action}" = "sum by (action) (increase(${local.metric_names.rollouts}{${local.of_services}}[1h]))"
      }
    },
    {
      title = "Runs of promote by status"
      unit  = "runs in five minutes"
      lines = {
        "$${labels.status}" = "sum by (status) (increase(${local.metric_names.ticks}{${local.of_services}}[5m]))"
      }
    },
    {
      title = "Instances"
      unit  = "instances"
      lines = {
        "$${labels.service_name}" = "sum by (service_name) (run_googleapis_com:container_instance_count{${local.all_services}})"
      }
    },
    {
      title = "MLflow's database"
      unit  = "share"
      lines = {
        disk   = "max(cloudsql_googleapis_com:database_disk_utilization{${local.database}})"
        memory = "max(cloudsql_googleapis_com:database_memory_utilization{${local.database}})"
        CPU    = "max(cloudsql_googleapis_com:database_cpu_utilization{${local.database}})"
      }
    },
  ]
}

resource "google_monitoring_dashboard" "greenroom" {
  project = var.project
  dashboard_json = jsonencode({
    displayName = var.prefix
    mosaicLayout = {
      columns = 48
      tiles = [
        # A position of 0 is not written: the API leaves it out, and each plan would set it again.
        for index, chart in local.charts : merge(
          index % 2 == 0 ? {} : { xPos = 24 },
          index < 2 ? {} : { yPos = floor(index / 2) * 16 },
          {
            width  = 24
            height = 16
            widget = {
              title = chart.title
              xyChart = {
                dataSets = [
                  for legend, query in chart.lines : {
                    legendTemplate  = legend
                    plotType        = "LINE"
                    targetAxis      = "Y1"
                    timeSeriesQuery = { prometheusQuery = query }
                  }
                ]
                yAxis = { label = chart.unit, scale = "LINEAR" }
              }
            }
        })
      ]
    }
  })
}
