locals {
  # What each holds, and after how many days an object goes; null: never.
  buckets = {
    artifacts = { delete_after_days = null } # the registry's models
    data      = { delete_after_days = null } # reviews
    serving   = { delete_after_days = null } # bundles, by their digest
    staging   = { delete_after_days = local.size.staging_days }
  }
}

resource "google_storage_bucket" "this" {
  #checkov:skip=CKV_GCP_62:Cloud Audit Logs tell who reads and writes, also where nothing was written to another bucket
  for_each = local.buckets

  project  = local.project
  name     = "${var.project}-${each.key}"
  location = var.region

  uniform_bucket_level_access = true
  public_access_prevention    = "enforced"
  force_destroy               = !var.deletion_protection

  versioning {
    enabled = true
  }

  soft_delete_policy {
    retention_duration_seconds = 604800 # 7 days
  }

  lifecycle_rule {
    action {
      type = "Delete"
    }
    condition {
      days_since_noncurrent_time = local.size.noncurrent_days
      with_state                 = "ARCHIVED"
    }
  }

  lifecycle_rule {
    action {
      type = "AbortIncompleteMultipartUpload"
    }
    condition {
      age = 7
    }
  }

  dynamic "lifecycle_rule" {
    for_each = each.value.delete_after_days[*]

    content {
      action {
        type = "Delete"
      }
      condition {
        age        = lifecycle_rule.value
        with_state = "LIVE"
      }
    }
  }
}
