terraform {
  required_version = ">= 1.11"

  required_providers {
    google = {
      source  = "hashicorp/google"
      version = ">= 6.50, < 8"
    }
    # IAP on Cloud Run, service identities and the migration job's execution are in beta
    # at 6.50.
    google-beta = {
      source  = "hashicorp/google-beta"
      version = ">= 6.50, < 8"
    }
    random = {
      source  = "hashicorp/random"
      version = ">= 3.7, < 4"
    }
    time = {
      source  = "hashicorp/time"
      version = ">= 0.13, < 1"
    }
  }

  # terraform init -backend-config="bucket=..."
  backend "gcs" {
    prefix = "greenroom"
  }
}

provider "google" {
  project = var.project
  region  = var.region

  # Some APIs, budgets among them, count a person's calls against a project that is named.
  billing_project       = var.project
  user_project_override = true

  default_labels = local.labels
}

provider "google-beta" {
  project = var.project
  region  = var.region

  billing_project       = var.project
  user_project_override = true

  default_labels = local.labels
}
