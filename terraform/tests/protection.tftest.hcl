# Guards against a deletion that is refused half-way though protection is off: each resource has a
# switch of its own, and a default that refuses.

mock_provider "google" {
  override_data {
    target = data.google_project.this
    values = { number = "123456789012" }
  }
}

mock_provider "google-beta" {}

variables {
  project = "my-project-123"
  images = {
    mlflow  = "host/repository/mlflow@sha256:0000000000000000000000000000000000000000000000000000000000000001"
    predict = "host/repository/predict@sha256:0000000000000000000000000000000000000000000000000000000000000002"
    promote = "host/repository/promote@sha256:0000000000000000000000000000000000000000000000000000000000000003"
    proxy   = "host/repository/proxy@sha256:0000000000000000000000000000000000000000000000000000000000000004"
    trainer = "host/repository/trainer@sha256:0000000000000000000000000000000000000000000000000000000000000005"
    ui      = "host/repository/ui@sha256:0000000000000000000000000000000000000000000000000000000000000006"
  }
}

run "on" {
  command = plan

  assert {
    condition     = !google_cloud_run_v2_job.migrate.deletion_protection
    error_message = "A migration whose first run failed could never be made anew."
  }

  assert {
    condition = alltrue([
      google_cloud_run_v2_service.predict.deletion_protection,
      google_firestore_database.this.delete_protection_state == "DELETE_PROTECTION_ENABLED",
      google_secret_manager_secret.database_password.deletion_protection,
      google_sql_database_instance.mlflow.deletion_protection,
      google_sql_database_instance.mlflow.settings[0].deletion_protection_enabled,
      google_sql_database_instance.mlflow.settings[0].retain_backups_on_delete,
      !anytrue([for bucket in google_storage_bucket.this : bucket.force_destroy]),
    ])
    error_message = "Something could be destroyed with protection on."
  }
}

run "off" {
  command = plan

  variables {
    deletion_protection = false
  }

  assert {
    condition = !anytrue([
      google_cloud_run_v2_job.migrate.deletion_protection,
      google_cloud_run_v2_service.predict.deletion_protection,
      google_firestore_database.this.delete_protection_state == "DELETE_PROTECTION_ENABLED",
      google_secret_manager_secret.database_password.deletion_protection,
      google_sql_database_instance.mlflow.deletion_protection,
      google_sql_database_instance.mlflow.settings[0].deletion_protection_enabled,
      google_sql_database_instance.mlflow.settings[0].retain_backups_on_delete,
    ])
    error_message = "Something still refuses to be destroyed."
  }

  assert {
    condition     = alltrue([for bucket in google_storage_bucket.this : bucket.force_destroy])
    error_message = "A bucket with objects refuses to be destroyed."
  }

  assert {
    condition     = google_firestore_database.this.deletion_policy == "DELETE"
    error_message = "The database would be left behind."
  }

  assert {
    condition     = google_sql_database.mlflow.deletion_policy == "ABANDON" && google_sql_user.mlflow.deletion_policy == "ABANDON"
    error_message = "PostgreSQL refuses to drop a user who owns tables."
  }
}
