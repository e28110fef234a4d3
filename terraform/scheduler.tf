# Its first call pins the traffic of predict. Whether it is paused is the operators' business:
# `paused` is left out, and Terraform keeps what is.
resource "google_cloud_scheduler_job" "promote" {
  project     = local.project
  region      = var.region
  name        = "promote"
  description = "Calls promote, which makes Cloud Run serve what the registry says"

  schedule         = "* * * * *"
  time_zone        = "Etc/UTC"
  attempt_deadline = "60s"

  # The next minute comes soon enough.
  retry_config {
    retry_count = 0
  }

  http_target {
    uri         = "${local.urls.promote}/"
    http_method = "POST"

    oidc_token {
      service_account_email = google_service_account.this["scheduler"].email
      # Left out, it would be the whole address, which Cloud Run refuses.
      audience = local.urls.promote
    }
  }

  lifecycle {
    precondition {
      condition     = local.rollout.max_bake_seconds >= local.rollout.bake_seconds
      error_message = "promote.bake_seconds (${local.rollout.bake_seconds}) is more than max_bake_seconds (${local.rollout.max_bake_seconds}, the preset's unless given): promote would refuse to start."
    }
  }

  depends_on = [google_cloud_run_v2_service_iam_member.invoker]
}
