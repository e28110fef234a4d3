resource "google_sql_database_instance" "mlflow" {
  #checkov:skip=CKV_GCP_55:its default, warning, tells what is wrong; each statement would fill the log
  project          = local.project
  name             = var.database_instance
  region           = var.region
  database_version = "POSTGRES_17"

  deletion_protection = var.deletion_protection

  settings {
    edition           = "ENTERPRISE"
    tier              = local.size.database.tier
    availability_type = local.size.database.availability
    disk_size         = local.size.database.disk_gb
    disk_type         = "PD_SSD"
    disk_autoresize   = true

    deletion_protection_enabled = var.deletion_protection
    retain_backups_on_delete    = var.deletion_protection

    ip_configuration {
      ipv4_enabled    = false
      private_network = module.network.network
      ssl_mode        = "ENCRYPTED_ONLY"
    }

    backup_configuration {
      enabled                        = true
      location                       = var.region
      start_time                     = "02:00"
      point_in_time_recovery_enabled = true
      transaction_log_retention_days = 7

      backup_retention_settings {
        retained_backups = local.size.database.retained_backups
      }
    }

    maintenance_window {
      day          = var.maintenance_window.day
      hour         = var.maintenance_window.hour
      update_track = "stable"
    }

    insights_config {
      query_insights_enabled = true
    }

    dynamic "database_flags" {
      for_each = {
        "cloudsql.enable_pgaudit"  = "on"
        log_checkpoints            = "on"
        log_connections            = "on"
        log_disconnections         = "on"
        log_duration               = "on"
        log_hostname               = "on"
        log_lock_waits             = "on"
        log_min_duration_statement = "-1"
        log_min_error_statement    = "error"
        log_min_messages           = "warning"
        log_statement              = "ddl"
        log_temp_files             = "0"
        max_connections            = tostring(local.size.database.max_connections)
      }

      content {
        name  = database_flags.key
        value = database_flags.value
      }
    }
  }

  lifecycle {
    # It grows by itself.
    ignore_changes = [settings[0].disk_size]
  }
}

resource "google_sql_database" "mlflow" {
  project  = local.project
  instance = google_sql_database_instance.mlflow.name
  name     = "mlflow"

  # PostgreSQL refuses to drop it while a session is open; it goes with the instance.
  deletion_policy = "ABANDON"
}

# Neither the state nor a plan ever holds it.
ephemeral "random_password" "database" {
  length  = 40
  special = false
}

resource "google_secret_manager_secret" "database_password" {
  project   = local.project
  secret_id = "greenroom-database-password"

  deletion_protection = var.deletion_protection

  replication {
    user_managed {
      replicas {
        location = var.region
      }
    }
  }
}

resource "google_secret_manager_secret_version" "database_password" {
  secret                 = google_secret_manager_secret.database_password.id
  secret_data_wo         = ephemeral.random_password.database.result
  secret_data_wo_version = var.database_password_version
}

resource "google_sql_user" "mlflow" {
  project  = local.project
  instance = google_sql_database_instance.mlflow.name
  name     = "mlflow"

  password_wo         = ephemeral.random_password.database.result
  password_wo_version = var.database_password_version

  # It owns tables; it goes with the instance.
  deletion_policy = "ABANDON"
}
