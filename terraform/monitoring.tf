module "monitoring" {
  source = "./monitoring"

  project        = local.project
  project_number = local.project_number
  region         = var.region

  budget                = var.budget
  database_instance     = google_sql_database_instance.mlflow.name
  notification_channels = var.alerts.channels
  notification_emails   = var.alerts.emails
  scheduler_job         = google_cloud_scheduler_job.promote.name
  # What is not given is left to the module's own defaults.
  slo                   = { for name, value in var.alerts.slo : name => value if value != null }
  thresholds            = { for name, value in var.alerts.thresholds : name => value if value != null }
  uptime_period_seconds = var.alerts.uptime_period_seconds

  # Google refuses a grant to an account that is not there.
  depends_on = [google_project_service_identity.monitoring]
}
