# Guards against values that Google would refuse after half an hour, or take and mean something else:
# each is refused at once, with what to write instead.

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

run "a_caller_that_is_everybody" {
  command = plan

  variables {
    api_callers = ["allUsers"]
  }

  expect_failures = [var.api_callers]
}

run "a_database_name_in_capitals" {
  command = plan

  variables {
    database_instance = "Greenroom"
  }

  expect_failures = [var.database_instance]
}

run "a_password_version_of_zero" {
  command = plan

  variables {
    database_password_version = 0
  }

  expect_failures = [var.database_password_version]
}

run "a_tag_in_place_of_a_digest" {
  command = plan

  variables {
    images = {
      mlflow  = "host/repository/mlflow:latest"
      predict = "host/repository/predict@sha256:0000000000000000000000000000000000000000000000000000000000000002"
      promote = "host/repository/promote@sha256:0000000000000000000000000000000000000000000000000000000000000003"
      proxy   = "host/repository/proxy@sha256:0000000000000000000000000000000000000000000000000000000000000004"
      trainer = "host/repository/trainer@sha256:0000000000000000000000000000000000000000000000000000000000000005"
      ui      = "host/repository/ui@sha256:0000000000000000000000000000000000000000000000000000000000000006"
    }
  }

  expect_failures = [var.images]
}

run "an_hour_that_there_is_not" {
  command = plan

  variables {
    maintenance_window = { hour = 24 }
  }

  expect_failures = [var.maintenance_window]
}

run "a_url_for_a_host_name" {
  command = plan

  variables {
    mlflow_domains = ["https://mlflow.example.com"]
  }

  expect_failures = [var.mlflow_domains]
}

run "a_model_name_with_a_slash" {
  command = plan

  variables {
    model_name = "yelp/model"
  }

  expect_failures = [var.model_name]
}

run "an_operator_without_a_kind" {
  command = plan

  variables {
    operators = ["ada@example.com"]
  }

  expect_failures = [var.operators]
}

run "a_service_account_behind_iap" {
  command = plan

  variables {
    people = ["serviceAccount:app@my-project-123.iam.gserviceaccount.com"]
  }

  expect_failures = [var.people]
}

run "a_peering_policy_that_google_refuses_for_days" {
  command = plan

  variables {
    peering_deletion_policy = "DELETE"
  }

  expect_failures = [var.peering_deletion_policy]
}

run "an_unknown_preset" {
  command = plan

  variables {
    preset = "large"
  }

  expect_failures = [var.preset]
}

run "a_project_number" {
  command = plan

  variables {
    project = "123456789012"
  }

  expect_failures = [var.project]
}

run "steps_that_do_not_rise" {
  command = plan

  variables {
    promote = { rollout_steps = [50, 10, 100] }
  }

  expect_failures = [var.promote]
}

run "steps_that_do_not_end_at_100" {
  command = plan

  variables {
    promote = { rollout_steps = [10, 50] }
  }

  expect_failures = [var.promote]
}

run "no_step_at_all" {
  command = plan

  variables {
    promote = { rollout_steps = [] }
  }

  expect_failures = [var.promote]
}

run "a_source_of_an_unknown_kind" {
  command = plan

  variables {
    promote = { promote_on = ["tag:production"] }
  }

  expect_failures = [var.promote]
}

run "a_longest_bake_below_the_least" {
  command = plan

  variables {
    promote = { bake_seconds = 600, max_bake_seconds = 60 }
  }

  expect_failures = [var.promote]
}

run "a_public_model" {
  command = plan

  variables {
    public_services = ["predict"]
  }

  expect_failures = [var.public_services]
}

run "a_zone" {
  command = plan

  variables {
    region = "europe-west1-b"
  }

  expect_failures = [var.region]
}

run "a_wait_without_a_unit" {
  command = plan

  variables {
    release_wait = "7200"
  }

  expect_failures = [var.release_wait]
}

run "a_hyphen_in_the_id_of_a_role" {
  command = plan

  variables {
    role_prefix = "greenroom-2"
  }

  expect_failures = [var.role_prefix]
}

run "a_role_prefix_that_leaves_no_room_for_a_name" {
  command = plan

  variables {
    role_prefix = "greenroom.of.the.second.installation.in.2026.x"
  }

  expect_failures = [var.role_prefix]
}

run "a_submitter_without_a_kind" {
  command = plan

  variables {
    submitters = ["bob@example.com"]
  }

  expect_failures = [var.submitters]
}

run "a_subnet_that_is_too_small" {
  command = plan

  variables {
    subnet_range = "10.8.0.0/28"
  }

  expect_failures = [var.subnet_range]
}

run "shares_above_one" {
  command = plan

  variables {
    promote = { auroc_floor = 80 }
  }

  expect_failures = [var.promote]
}

run "half_percents" {
  command = plan

  variables {
    promote = { rollout_steps = [12.5, 100] }
  }

  expect_failures = [var.promote]
}

run "too_few_revisions" {
  command = plan

  variables {
    promote = { keep_revisions = 1 }
  }

  expect_failures = [var.promote]
}

run "a_bake_time_above_the_presets_longest" {
  command = plan

  variables {
    promote = { bake_seconds = 7200 }
  }

  expect_failures = [google_cloud_scheduler_job.promote]
}

run "no_shards" {
  command = plan

  variables {
    proxy = { statistics_shards = 0 }
  }

  expect_failures = [var.proxy]
}

run "a_negative_retention" {
  command = plan

  variables {
    proxy = { retention_days = -1 }
  }

  expect_failures = [var.proxy]
}

run "a_repository_id_that_is_half" {
  command = plan

  variables {
    build = { repository = "example/greenroom", repository_id = 7.5 }
  }

  expect_failures = [var.build]
}
