resource "google_sql_database_instance" "mlflow" {
  #checkov:skip=CKV_GCP_6:ENCRYPTED_ONLY refuses what is not TLS; client certificates would be one more secret to renew
  #checkov:skip=CKV_GCP_79:17 is kept up for years; the next major version is a migration that an operator chooses
  #checkov:skip=CKV_GCP_108:a look-up of the host's name at each connection; the callers are two services of one subnet
  #checkov:skip=CKV2_GCP_13:Query Insights has each query's duration; a line a query would fill the log
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

    database_flags {
      name  = "cloudsql.enable_pgaudit"
      value = "on"
    }

    database_flags {
      name  = "log_checkpoints"
      value = "on"
    }

    database_flags {
      name  = "log_connections"
      value = "on"
    }

    database_flags {
      name  = "log_disconnections"
      value = "on"
    }

    database_flags {
      name  = "log_lock_waits"
      value = "on"
    }

    database_flags {
      name  = "log_min_error_statement"
      value = "error"
    }

    database_flags {
      name  = "log_min_messages"
      value = "error"
    }

    database_flags {
      name  = "log_statement"
      value = "ddl"
    }

    database_flags {
      name  = "log_temp_files"
      value = "0"
    }

    database_flags {
      name  = "max_connections"
      value = tostring(local.size.database.max_connections)
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
