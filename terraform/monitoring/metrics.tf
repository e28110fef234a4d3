# Made from the lines that the services write; tests/terraform/test_monitoring.py runs the
# services' own lines against each filter.
locals {
  services_filter = {
    for key, name in var.services : key => join("\n", [
      "resource.type=\"cloud_run_revision\"",
      "resource.labels.location=\"${var.region}\"",
      "resource.labels.service_name=\"${name}\"",
    ])
  }
  # Cloud Run's own lines have no logger.
  access_filter = "jsonPayload.logger=\"functions.access_log\""
  rollout_label = "REGEXP_EXTRACT(jsonPayload.message, \"^([a-z]+): \")"
}

resource "google_logging_metric" "predictions" {
  project     = var.project
  name        = "${var.prefix}/predictions"
  description = "Requests that predict answered with a score."
  filter      = <<-EOT
    ${local.services_filter.predict}
    ${local.access_filter}
    httpRequest.status=200
    jsonPayload.model_version:*
  EOT

  metric_descriptor {
    metric_kind = "DELTA"
    value_type  = "INT64"
    unit        = "1"

    labels {
      key         = "model_version"
      description = "Version in the registry."
    }
    labels {
      key         = "revision"
      description = "Revision in Cloud Run."
    }
  }

  label_extractors = {
    model_version = "EXTRACT(jsonPayload.model_version)"
    revision      = "EXTRACT(resource.labels.revision_name)"
  }
}

resource "google_logging_metric" "unknown_share" {
  project         = var.project
  name            = "${var.prefix}/unknown_share"
  description     = "Share of a request's n-grams that the model does not know."
  value_extractor = "EXTRACT(jsonPayload.unknown_share)"
  filter          = <<-EOT
    ${local.services_filter.predict}
    ${local.access_filter}
    jsonPayload.unknown_share>=0
  EOT

  metric_descriptor {
    metric_kind = "DELTA"
    value_type  = "DISTRIBUTION"
    unit        = "1"

    labels {
      key         = "model_version"
      description = "Version in the registry."
    }
  }

  bucket_options {
    linear_buckets {
      num_finite_buckets = 20
      offset             = 0
      width              = 0.05
    }
  }

  label_extractors = {
    model_version = "EXTRACT(jsonPayload.model_version)"
  }
}

resource "google_logging_metric" "answers" {
  project     = var.project
  name        = "${var.prefix}/answers"
  description = "Users' own answers, and whether they agree with the model."
  filter      = <<-EOT
    ${local.services_filter.proxy}
    ${local.access_filter}
    jsonPayload.agreed:*
  EOT

  metric_descriptor {
    metric_kind = "DELTA"
    value_type  = "INT64"
    unit        = "1"

    labels {
      key         = "agreed"
      description = "true or false."
    }
    labels {
      key         = "model_version"
      description = "Version in the registry."
    }
  }

  label_extractors = {
    agreed        = "EXTRACT(jsonPayload.agreed)"
    model_version = "EXTRACT(jsonPayload.model_version)"
  }
}

resource "google_logging_metric" "ticks" {
  project     = var.project
  name        = "${var.prefix}/ticks"
  description = "Runs of promote, by the status of its answer: 200, or 503 where it could not look."
  filter      = <<-EOT
    ${local.services_filter.promote}
    ${local.access_filter}
    httpRequest.requestMethod="POST"
    httpRequest.requestUrl="/"
  EOT

  metric_descriptor {
    metric_kind = "DELTA"
    value_type  = "INT64"
    unit        = "1"

    labels {
      key         = "status"
      description = "HTTP status."
    }
  }

  label_extractors = {
    status = "EXTRACT(httpRequest.status)"
  }
}

resource "google_logging_metric" "rollouts" {
  project     = var.project
  name        = "${var.prefix}/rollouts"
  description = "What promote did to the service: create, tag, step, promote, block, back."
  filter      = <<-EOT
    ${local.services_filter.promote}
    jsonPayload.logger="root"
    jsonPayload.message=~"^(create|tag|step|promote|block|back): "
  EOT

  metric_descriptor {
    metric_kind = "DELTA"
    value_type  = "INT64"
    unit        = "1"

    labels {
      key         = "action"
      description = "What was done."
    }
  }

  label_extractors = {
    action = local.rollout_label
  }
}
