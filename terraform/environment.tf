locals {
  image = {
    for part in ["mlflow", "predict", "promote", "proxy", "trainer", "ui"] :
    part => try(var.images[part], null)
  }

  # A service has two run.app names: one with the project's number, and an older one whose
  # middle is the same for every service of a project and region.
  mlflow_hosts = {
    for service in ["mlflow", "mlflow-api"] : service => distinct(concat(
      [trimprefix(local.urls[service], "https://")],
      [replace(trimprefix(google_cloud_run_v2_service.predict.uri, "https://"), "/^predict-/", "${service}-")],
      service == "mlflow" ? sort(var.mlflow_domains) : [],
    ))
  }

  database_environment = {
    DATABASE_HOST = google_sql_database_instance.mlflow.private_ip_address
    DATABASE_NAME = google_sql_database.mlflow.name
    DATABASE_PORT = "5432"
    DATABASE_USER = google_sql_user.mlflow.name
  }
  database_secrets = {
    DATABASE_PASSWORD = {
      secret  = google_secret_manager_secret.database_password.secret_id
      version = google_secret_manager_secret_version.database_password.version
    }
  }

  proxy_concurrency = 80

  rollout = { for name, value in local.size.rollout : name => coalesce(var.promote[name], value) }

  # What each settings.py declares; Cloud Run sets PORT and K_REVISION, and promote's args
  # name the model.
  predict_environment = {
    STORAGE_TIMEOUT_SECONDS = "120"
    WORKERS                 = tostring(local.size.services.predict.cpu)
  }
  environment = {
    promote = {
      ANSWERS_ERROR_RATE      = tostring(var.promote.answers_error_rate)
      ARTIFACTS_BUCKET        = google_storage_bucket.this["artifacts"].name
      AUROC_FLOOR             = tostring(var.promote.auroc_floor)
      AUROC_MARGIN            = tostring(var.promote.auroc_margin)
      BAKE_SECONDS            = tostring(local.rollout.bake_seconds)
      BEHAVIOUR_FLOOR         = tostring(var.promote.behaviour_floor)
      CANDIDATE_LATENCY_RATIO = tostring(var.promote.candidate_latency_ratio)
      FIRESTORE_DATABASE      = google_firestore_database.this.name
      FIRESTORE_PROJECT       = var.project
      GATE_TIMEOUT_SECONDS    = tostring(var.promote.gate_timeout_seconds)
      GOLDEN_TOLERANCE        = tostring(var.promote.golden_tolerance)
      HEED_VALIDATION         = tostring(var.promote.heed_validation)
      KEEP_REVISIONS          = tostring(var.promote.keep_revisions)
      LATENCY_FLOOR_SECONDS   = tostring(var.promote.latency_floor_seconds)
      MAX_BAKE_SECONDS        = tostring(local.rollout.max_bake_seconds)
      MAX_ERROR_RATIO         = tostring(var.promote.max_error_ratio)
      MAX_LATENCY_RATIO       = tostring(var.promote.max_latency_ratio)
      MIN_REQUESTS            = tostring(local.rollout.min_requests)
      MLFLOW_AUDIENCE         = local.urls.mlflow-api
      MLFLOW_TRACKING_URI     = local.urls.mlflow-api
      MODEL_NAME              = var.model_name
      PROJECT                 = var.project
      PROMOTE_ON              = join(",", var.promote.promote_on)
      PROXY_URL               = local.urls.proxy
      REGION                  = var.region
      ROLLOUT_STEPS           = join(",", local.rollout.rollout_steps)
      SERVICE                 = google_cloud_run_v2_service.predict.name
      SERVING_BUCKET          = google_storage_bucket.this["serving"].name
      WORKERS                 = "1"
    }
    proxy = {
      ANSWERS_PER_CALLER        = tostring(var.proxy.answers_per_caller)
      FIRESTORE_DATABASE        = google_firestore_database.this.name
      FIRESTORE_PROJECT         = var.project
      FIRESTORE_TIMEOUT_SECONDS = tostring(var.proxy.firestore_timeout_seconds)
      # As many as Cloud Run sends to one instance.
      MAX_IN_FLIGHT           = tostring(local.proxy_concurrency)
      PREDICT_AUDIENCE        = local.urls.predict
      PREDICT_TIMEOUT_SECONDS = tostring(var.proxy.predict_timeout_seconds)
      PREDICT_URL             = local.urls.predict
      RETENTION_DAYS          = tostring(var.proxy.retention_days)
      STATISTICS_SHARDS       = tostring(var.proxy.statistics_shards)
      # The page names the people behind it; nobody else's word is taken for who is.
      TRUSTED_FRONTS = google_service_account.this["ui"].email
      WORKERS        = tostring(local.size.services.proxy.cpu)
    }
    ui = {
      MLFLOW_URL            = local.urls.mlflow
      MODEL_NAME            = var.model_name
      PROXY_AUDIENCE        = local.urls.proxy
      PROXY_TIMEOUT_SECONDS = "20"
      PROXY_URL             = local.urls.proxy
      TITLE                 = "Greenroom"
    }
    mlflow = {
      for service in ["mlflow", "mlflow-api"] : service => merge(local.database_environment, {
        ALLOWED_HOSTS        = join(",", local.mlflow_hosts[service])
        ARTIFACT_ROOT        = "gs://${google_storage_bucket.this["artifacts"].name}/mlflow"
        CORS_ALLOWED_ORIGINS = join(",", [for host in local.mlflow_hosts[service] : "https://${host}"])
        WORKERS              = tostring(local.size.services[service].cpu)
      })
    }
  }
}
