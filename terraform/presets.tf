locals {
  presets = {
    small = {
      database = {
        tier             = "db-f1-micro"
        availability     = "ZONAL"
        disk_gb          = 10
        max_connections  = 60
        retained_backups = 7
      }
      services = {
        mlflow     = { cpu = 1, memory = "2Gi", min = 0, max = 1 }
        mlflow-api = { cpu = 1, memory = "2Gi", min = 0, max = 2 }
        predict    = { cpu = 1, memory = "512Mi", min = 0, max = 3 }
        promote    = { cpu = 1, memory = "512Mi", min = 0, max = 2 }
        proxy      = { cpu = 1, memory = "512Mi", min = 0, max = 3 }
        ui         = { cpu = 1, memory = "1Gi", min = 0, max = 2 }
      }
      rollout = {
        bake_seconds     = 300
        max_bake_seconds = 1800
        min_requests     = 50
        rollout_steps    = [100]
      }
      daily_backup_days       = 7
      weekly_backup_days      = 0
      noncurrent_days         = 30
      staging_days            = 30
      retained_image_versions = 60
    }
    production = {
      database = {
        tier             = "db-custom-2-7680"
        availability     = "REGIONAL"
        disk_gb          = 20
        max_connections  = 200
        retained_backups = 30
      }
      services = {
        mlflow     = { cpu = 2, memory = "4Gi", min = 0, max = 2 }
        mlflow-api = { cpu = 2, memory = "4Gi", min = 1, max = 4 }
        predict    = { cpu = 2, memory = "1Gi", min = 1, max = 20 }
        promote    = { cpu = 1, memory = "512Mi", min = 0, max = 2 }
        proxy      = { cpu = 1, memory = "512Mi", min = 1, max = 20 }
        ui         = { cpu = 1, memory = "1Gi", min = 0, max = 5 }
      }
      rollout = {
        bake_seconds     = 600
        max_bake_seconds = 3600
        min_requests     = 200
        rollout_steps    = [10, 50, 100]
      }
      daily_backup_days       = 7
      weekly_backup_days      = 84
      noncurrent_days         = 90
      staging_days            = 90
      retained_image_versions = 150
    }
  }

  size = local.presets[var.preset]
}
