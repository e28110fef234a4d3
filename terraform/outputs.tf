locals {
  operator_environment = merge({
    # Those that promote doesn't name are looked at too.
    GREENROOM_BUCKETS           = join(" ", sort([for bucket in google_storage_bucket.this : bucket.name]))
    GREENROOM_DATABASE          = google_firestore_database.this.name
    GREENROOM_DATABASE_INSTANCE = google_sql_database_instance.mlflow.name
    GREENROOM_JOB               = google_cloud_scheduler_job.promote.name
    GREENROOM_MODEL             = var.model_name
    GREENROOM_PROJECT           = var.project
    GREENROOM_PROMOTE_ON        = local.environment.promote.PROMOTE_ON
    GREENROOM_PROMOTE_URL       = local.urls.promote
    GREENROOM_REGION            = var.region
    GREENROOM_TRACKING_URI      = local.urls.mlflow-api
    # Google's libraries read it: calls with a person's own credentials count against a project.
    GOOGLE_CLOUD_QUOTA_PROJECT = var.project
    },
    length(var.public_services) > 0 ? { GREENROOM_PUBLIC = join(" ", sort(var.public_services)) } : {},
  )
  submitter_environment = {
    GOOGLE_CLOUD_PROJECT    = var.project
    GOOGLE_CLOUD_REGION     = var.region
    MLFLOW_TRACKING_URI     = local.urls.mlflow-api
    TRAINER_IMAGE           = local.image.trainer
    TRAINER_SERVICE_ACCOUNT = google_service_account.this["trainer"].email
    TRAINER_STAGING_BUCKET  = "gs://${google_storage_bucket.this["staging"].name}"
  }
}

output "buckets" {
  description = "Name of each bucket."
  value       = { for key, bucket in google_storage_bucket.this : key => bucket.name }
}

output "environment" {
  description = "Variables for greenroom and trainer submit: eval \"$(terraform output -raw environment)\"."
  value = join("", [
    for name, value in merge(local.operator_environment, local.submitter_environment) :
    "export ${name}='${value}'\n"
  ])
}

output "next_commands" {
  description = "What to do next."
  value       = <<-EOT
    export PATH=$PWD/.venv/bin:$PATH   # make setup
    eval "$(terraform -chdir=terraform output -raw environment)"
    # Pin the traffic now, instead of at the scheduler's next minute:
    greenroom run-now
    # Train and register:
    gcloud storage cp trainer/sample_reviews.csv gs://${google_storage_bucket.this["data"].name}/
    python -m trainer submit -- train --data gs://${google_storage_bucket.this["data"].name}/sample_reviews.csv --register ${var.model_name}
    # Open ${local.urls.mlflow}, give the version the alias, and watch:
    greenroom run-now --wait
    greenroom doctor
    # Ask it:
    curl -s -H "Authorization: Bearer $(gcloud auth print-identity-token)" -H "Content-Type: application/json" \
      -d '{"text": "very good cafe", "is_positive_user_answered": true}' ${local.urls.proxy}/predictions
  EOT
}

output "repository" {
  description = "Where the images go."
  value       = local.repository
}

output "service_accounts" {
  description = "E-mail address of each service account."
  value       = { for name, account in google_service_account.this : name => account.email }
}

output "urls" {
  description = "Address of each service."
  value       = local.urls
}
