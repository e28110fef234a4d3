variable "alerts" {
  description = "Whom alerts are sent to, when they fire, and the two objectives; see monitoring/variables.tf."
  type = object({
    channels = optional(list(string), [])
    emails   = optional(list(string), [])
    slo = optional(object({
      availability = optional(number)
      latency      = optional(number)
      latency_ms   = optional(number)
      period_days  = optional(number)
    }), {})
    thresholds = optional(object({
      database_disk   = optional(number)
      database_memory = optional(number)
      error_share     = optional(number)
      latency_ms      = optional(number)
      min_requests    = optional(number)
      silent_minutes  = optional(number)
    }), {})
    uptime_period_seconds = optional(number, 300)
  })
  default = {}
}

variable "api_callers" {
  description = "Who may call the proxy besides the page, as IAM members."
  type        = set(string)
  default     = []

  validation {
    condition     = alltrue([for member in var.api_callers : can(regex("^(user|group|serviceAccount|domain):[^@:\\s]*@?[^@:\\s]+$", member))])
    error_message = "api_callers are IAM members such as serviceAccount:app@PROJECT.iam.gserviceaccount.com; for everybody there is public_services."
  }
}

variable "budget" {
  description = "Monthly budget of the project, in units of the billing account's currency; null: none."
  type = object({
    amount          = number
    billing_account = string
  })
  default = null
}

variable "database_instance" {
  description = "Name of the Cloud SQL instance. A deleted one's name may stay reserved for up to a week: should Google refuse it, give another."
  type        = string
  default     = "greenroom-mlflow"

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{0,78}[a-z0-9]$", var.database_instance))
    error_message = "database_instance has lower-case letters, digits and hyphens, a letter first."
  }
}

variable "database_password_version" {
  description = "Raise it by one to change MLflow's database password; also when an apply was cut off between the secret and the database user."
  type        = number
  default     = 1

  validation {
    condition     = var.database_password_version >= 1 && floor(var.database_password_version) == var.database_password_version
    error_message = "database_password_version is a whole number of at least 1."
  }
}

variable "deletion_protection" {
  description = "Refuse to destroy what holds data or serves; false, applied, comes before terraform destroy."
  type        = bool
  default     = true
}

variable "images" {
  description = "Image of each part, by digest: REPOSITORY@sha256:DIGEST. Null until they are built."
  type = object({
    mlflow  = string
    predict = string
    promote = string
    proxy   = string
    trainer = string
    ui      = string
  })
  default = null

  validation {
    condition     = alltrue([for image in values(coalesce(var.images, {})) : can(regex("^[^@\\s]+@sha256:[0-9a-f]{64}$", image))])
    error_message = "images are named by digest, REPOSITORY@sha256:DIGEST: a tag may point at another image tomorrow. The digest is the answer of: gcloud artifacts docker images describe REPOSITORY:TAG --format='value(image_summary.fully_qualified_digest)'."
  }
}

variable "maintenance_window" {
  description = "When Google may restart the database: day of the week, 1 is Monday, and hour, UTC."
  type = object({
    day  = optional(number, 7)
    hour = optional(number, 3)
  })
  default = {}

  validation {
    condition     = var.maintenance_window.day >= 1 && var.maintenance_window.day <= 7 && var.maintenance_window.hour >= 0 && var.maintenance_window.hour <= 23
    error_message = "maintenance_window.day is 1 (Monday) to 7, .hour is 0 to 23."
  }
}

variable "mlflow_domains" {
  description = "Host names under which people reach MLflow besides its run.app ones, such as mlflow.example.com: MLflow refuses changes that come from any other."
  type        = set(string)
  default     = []

  validation {
    condition     = alltrue([for name in var.mlflow_domains : can(regex("^([a-z0-9]([a-z0-9-]*[a-z0-9])?\\.)+[a-z]{2,}$", name))])
    error_message = "mlflow_domains are host names such as mlflow.example.com, with no https:// and no path."
  }
}

variable "model_name" {
  description = "Name in the model registry."
  type        = string
  default     = "yelp-model"

  validation {
    condition     = can(regex("^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$", var.model_name))
    error_message = "model_name has letters, digits, _, . and -, at most 63: it is a folder's name too."
  }
}

variable "operators" {
  description = "Who may use greenroom (status, history, pause, run-now, rollback, doctor), as IAM members."
  type        = set(string)
  default     = []

  validation {
    condition     = alltrue([for member in var.operators : can(regex("^(user|group|serviceAccount):[^@:\\s]+@[^@:\\s]+$", member))])
    error_message = "operators are IAM members such as user:ada@example.com or group:ops@example.com."
  }
}

variable "peering_deletion_policy" {
  description = "What destroy does about the peering with Google's network: ABANDON leaves it, for you to delete by hand; REMOVE_PEERING, which only newer releases of Google's provider know, takes it away."
  type        = string
  default     = "ABANDON"

  validation {
    condition     = contains(["ABANDON", "REMOVE_PEERING"], var.peering_deletion_policy)
    error_message = "peering_deletion_policy is ABANDON or REMOVE_PEERING."
  }
}

variable "people" {
  description = "Who may open MLflow and the page through IAP, as IAM members."
  type        = set(string)
  default     = []

  validation {
    condition     = alltrue([for member in var.people : can(regex("^(user|group|domain):[^:\\s]+$", member))])
    error_message = "people are IAM members such as user:ada@example.com, group:reviewers@example.com or domain:example.com."
  }
}

variable "preset" {
  description = "Sizes, steps of a rollout and bake times: small costs little and stops when idle, production keeps instances and a second database."
  type        = string
  default     = "small"

  validation {
    condition     = contains(["small", "production"], var.preset)
    error_message = "preset is small or production."
  }
}

variable "project" {
  description = "Id of the Google Cloud project."
  type        = string

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{4,28}[a-z0-9]$", var.project))
    error_message = "project is the project's id, such as my-project-123: neither its name nor its number."
  }
}

variable "promote" {
  description = "What a candidate must pass, as promote's settings of the same names say (python -m functions.promote --help); null: the preset's, else promote's own default."
  type = object({
    answers_error_rate      = optional(number, 0.05)
    auroc_floor             = optional(number, 0.8)
    auroc_margin            = optional(number, 0.02)
    bake_seconds            = optional(number)
    behaviour_floor         = optional(number, 0.7)
    candidate_latency_ratio = optional(number, 3)
    gate_timeout_seconds    = optional(number, 300)
    golden_tolerance        = optional(number, 0.000001)
    heed_validation         = optional(bool, true)
    keep_revisions          = optional(number, 20)
    latency_floor_seconds   = optional(number, 0.25)
    max_bake_seconds        = optional(number)
    max_error_ratio         = optional(number, 0.01)
    max_latency_ratio       = optional(number, 2)
    min_requests            = optional(number)
    promote_on              = optional(list(string), ["alias:production", "stage:Production"])
    rollout_steps           = optional(list(number))
  })
  default = {}

  validation {
    condition     = try(length(var.promote.rollout_steps) > 0 && var.promote.rollout_steps[length(var.promote.rollout_steps) - 1] == 100 && alltrue([for i in range(1, length(var.promote.rollout_steps)) : var.promote.rollout_steps[i] > var.promote.rollout_steps[i - 1]]) && var.promote.rollout_steps[0] > 0, var.promote.rollout_steps == null)
    error_message = "promote.rollout_steps rise from more than 0 to 100, such as [10, 50, 100]."
  }

  validation {
    condition     = length(var.promote.promote_on) > 0 && alltrue([for source in var.promote.promote_on : can(regex("^(alias|stage):[^:,]+$", source))])
    error_message = "promote.promote_on are alias:NAME and stage:NAME, the first that names a version wins."
  }

  validation {
    condition     = alltrue([for step in coalesce(var.promote.rollout_steps, []) : floor(step) == step])
    error_message = "promote.rollout_steps are whole percents."
  }

  validation {
    condition     = alltrue([for share in [var.promote.auroc_floor, var.promote.auroc_margin, var.promote.behaviour_floor, var.promote.max_error_ratio] : share >= 0 && share <= 1])
    error_message = "promote.auroc_floor, .auroc_margin, .behaviour_floor and .max_error_ratio are between 0 and 1."
  }

  validation {
    condition     = var.promote.answers_error_rate >= 0 && var.promote.answers_error_rate < 1
    error_message = "promote.answers_error_rate is 0 or more and less than 1."
  }

  validation {
    condition     = var.promote.keep_revisions >= 3 && floor(var.promote.keep_revisions) == var.promote.keep_revisions
    error_message = "promote.keep_revisions is a whole number of at least 3: what serves, what served before, and a candidate."
  }

  validation {
    condition     = try(var.promote.max_bake_seconds >= var.promote.bake_seconds, true)
    error_message = "promote.max_bake_seconds is at least promote.bake_seconds."
  }
}

variable "proxy" {
  description = "The proxy's settings of the same names (python -m functions.proxy --help)."
  type = object({
    answers_per_caller        = optional(number, 20)
    firestore_timeout_seconds = optional(number, 5)
    predict_timeout_seconds   = optional(number, 10)
    retention_days            = optional(number, 0)
    statistics_shards         = optional(number, 10)
  })
  default = {}

  validation {
    condition     = var.proxy.statistics_shards >= 1 && var.proxy.statistics_shards <= 100
    error_message = "proxy.statistics_shards is between 1 and 100: each takes about one sustained write a second, and costs a read of the statistics."
  }

  validation {
    condition     = var.proxy.retention_days >= 0 && var.proxy.retention_days <= 36500
    error_message = "proxy.retention_days is a number of days, or 0: for ever."
  }
}

variable "public_services" {
  description = "Services that everybody on the internet may call, with no sign-in: proxy, ui, or none. Each call costs."
  type        = set(string)
  default     = []

  validation {
    condition     = length(setsubtract(var.public_services, ["proxy", "ui"])) == 0
    error_message = "public_services can hold proxy and ui only: the model, promote and MLflow are never public."
  }
}

variable "region" {
  description = "Where everything runs and is stored."
  type        = string
  default     = "europe-west1"

  validation {
    condition     = can(regex("^[a-z]+-[a-z]+[0-9]+$", var.region))
    error_message = "region is a region such as europe-west1: neither a zone nor a multi-region."
  }
}

variable "release_wait" {
  description = "How long destroy waits between the services and their subnet: Cloud Run holds its addresses for one to two hours."
  type        = string
  default     = "7200s"

  validation {
    condition     = can(regex("^[0-9]+(s|m|h)$", var.release_wait))
    error_message = "release_wait is a duration such as 7200s or 2h."
  }
}

variable "role_prefix" {
  description = "Ids of the own roles begin with it. A deleted role's id stays taken for 37 days: to install anew within them, give another."
  type        = string
  default     = "greenroom"

  validation {
    condition     = can(regex("^[a-zA-Z0-9_.]{3,44}$", var.role_prefix))
    error_message = "role_prefix has 3 to 44 letters, digits, underscores and periods."
  }
}

variable "submitters" {
  description = "Who may start trainings on Vertex AI (python -m trainer submit), as IAM members."
  type        = set(string)
  default     = []

  validation {
    condition     = alltrue([for member in var.submitters : can(regex("^(user|group|serviceAccount):[^@:\\s]+@[^@:\\s]+$", member))])
    error_message = "submitters are IAM members such as user:ada@example.com."
  }
}

variable "subnet_range" {
  description = "Addresses of the subnet that MLflow's services reach the database from; at least a /26."
  type        = string
  default     = "10.8.0.0/24"

  validation {
    condition     = can(cidrhost(var.subnet_range, 0)) && try(tonumber(split("/", var.subnet_range)[1]) <= 26, false)
    error_message = "subnet_range is a range such as 10.8.0.0/24, at least a /26."
  }
}
