# Guards against presets that are not what terraform/README.md says, and against an override that is
# not heeded.

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

run "small" {
  command = plan

  assert {
    condition     = local.environment.promote.ROLLOUT_STEPS == "100"
    error_message = "small promotes in one step."
  }

  assert {
    condition     = google_sql_database_instance.mlflow.settings[0].tier == "db-f1-micro" && google_sql_database_instance.mlflow.settings[0].availability_type == "ZONAL"
    error_message = "small has the smallest database, once."
  }

  assert {
    condition     = alltrue([for size in values(local.size.services) : size.min == 0])
    error_message = "small keeps no instance."
  }
}

run "production" {
  command = plan

  variables {
    preset = "production"
  }

  assert {
    condition = [
      local.environment.promote.ROLLOUT_STEPS,
      local.environment.promote.BAKE_SECONDS,
      local.environment.promote.MAX_BAKE_SECONDS,
    ] == ["10,50,100", "600", "3600"]
    error_message = "production promotes in steps and bakes each."
  }

  assert {
    condition     = google_sql_database_instance.mlflow.settings[0].availability_type == "REGIONAL"
    error_message = "production has a second database, in another zone."
  }

  assert {
    condition     = google_cloud_run_v2_service.predict.template[0].scaling[0].min_instance_count == 1
    error_message = "production keeps an instance of predict."
  }

  assert {
    condition     = local.predict_environment.WORKERS == "2"
    error_message = "A server process for each CPU."
  }
}

run "overridden" {
  command = plan

  variables {
    preset = "production"
    promote = {
      rollout_steps = [25, 100]
    }
  }

  assert {
    condition     = local.environment.promote.ROLLOUT_STEPS == "25,100" && local.environment.promote.BAKE_SECONDS == "600"
    error_message = "What is given comes before the preset, and the rest stays."
  }
}
