locals {
  repository = "${var.region}-docker.pkg.dev/${var.project}/${google_artifact_registry_repository.images.repository_id}"
}

resource "google_artifact_registry_repository" "images" {
  #checkov:skip=CKV_GCP_84:Google's own keys encrypt it; images hold no data of users
  project       = local.project
  location      = var.region
  repository_id = "greenroom"
  description   = "Greenroom's images"
  format        = "DOCKER"

  vulnerability_scanning_config {
    # Each pushed image would be paid for; builds scan what they push.
    enablement_config = "DISABLED"
  }

  # Cloud Run keeps a copy of what a revision runs. Tags may move, for nothing is deployed by
  # one; were they immutable, no image that has one could be cleaned up.
  cleanup_policies {
    id     = "keep-newest"
    action = "KEEP"

    most_recent_versions {
      # Of each image. A build makes three versions: the index, the image and its attestation.
      keep_count = local.size.retained_image_versions
    }
  }

  cleanup_policies {
    id     = "delete-old"
    action = "DELETE"

    condition {
      older_than = "7776000s" # 90 days
      tag_state  = "ANY"
    }
  }
}
