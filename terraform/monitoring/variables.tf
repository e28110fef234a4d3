variable "budget" {
  description = "Monthly budget of the project, in units of the billing account's currency; null: none. Who applies it needs roles/billing.costsManager on the billing account."
  type = object({
    amount          = number
    billing_account = string
  })
  default = null

  validation {
    condition     = var.budget == null ? true : can(regex("^[0-9A-F]{6}-[0-9A-F]{6}-[0-9A-F]{6}$", var.budget.billing_account))
    error_message = "budget.billing_account is the account's id, such as 012345-6789AB-CDEF01: gcloud billing accounts list."
  }

  validation {
    condition     = var.budget == null ? true : var.budget.amount >= 1 && floor(var.budget.amount) == var.budget.amount
    error_message = "budget.amount is a whole number of at least 1."
  }
}

variable "database_instance" {
  description = "Name of the Cloud SQL instance of MLflow."
  type        = string
}

variable "notification_channels" {
  description = "Notification channels that exist already, as projects/PROJECT/notificationChannels/ID."
  type        = list(string)
  default     = []

  validation {
    condition     = alltrue([for name in var.notification_channels : can(regex("^projects/[^/]+/notificationChannels/[0-9]+$", name))])
    error_message = "A notification channel is named projects/PROJECT/notificationChannels/ID: gcloud beta monitoring channels list."
  }
}

variable "notification_emails" {
  description = "Addresses that alerts are sent to."
  type        = list(string)
  default     = []

  validation {
    condition     = alltrue([for address in var.notification_emails : can(regex("^[^@\\s]+@[^@\\s]+\\.[^@\\s]+$", address))])
    error_message = "notification_emails holds e-mail addresses such as ops@example.com."
  }
}

variable "prefix" {
  description = "Put before the names of metrics, and of everything that people see."
  type        = string
  default     = "greenroom"

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{0,29}$", var.prefix))
    error_message = "prefix has 1 to 30 lower-case letters, digits and hyphens, a letter first."
  }
}

variable "project" {
  description = "Google Cloud project."
  type        = string
}

variable "project_number" {
  description = "The project's number."
  type        = string
}

variable "region" {
  description = "Where the services are."
  type        = string
}

variable "scheduler_job" {
  description = "Cloud Scheduler job that calls promote."
  type        = string
  default     = "promote"
}

variable "services" {
  description = "Name in Cloud Run of each service."
  type = object({
    mlflow     = optional(string, "mlflow")
    mlflow_api = optional(string, "mlflow-api")
    predict    = optional(string, "predict")
    promote    = optional(string, "promote")
    proxy      = optional(string, "proxy")
    ui         = optional(string, "ui")
  })
  default = {}
}

variable "slo" {
  description = "The two objectives, over a rolling period: the share of the proxy's requests that it answers without an error of its own, and the share of predict's requests that it answers within latency_ms."
  type = object({
    availability = optional(number, 0.995)
    latency      = optional(number, 0.95)
    latency_ms   = optional(number, 500)
    period_days  = optional(number, 28)
  })
  default = {}

  validation {
    condition     = alltrue([for goal in [var.slo.availability, var.slo.latency] : goal > 0 && goal < 1])
    error_message = "slo.availability and slo.latency are shares between 0 and 1, such as 0.995."
  }

  validation {
    condition     = var.slo.period_days >= 1 && var.slo.period_days <= 30
    error_message = "slo.period_days is between 1 and 30."
  }
}

variable "thresholds" {
  description = "When alerts fire: the share of predict's answers that are errors and the 95th percentile of its latency, both over ten minutes with at least min_requests; minutes without a successful run of promote; shares of the database's disk and memory."
  type = object({
    database_disk   = optional(number, 0.8)
    database_memory = optional(number, 0.9)
    error_share     = optional(number, 0.02)
    latency_ms      = optional(number, 1000)
    min_requests    = optional(number, 20)
    silent_minutes  = optional(number, 15)
  })
  default = {}

  validation {
    condition     = alltrue([for share in [var.thresholds.database_disk, var.thresholds.database_memory, var.thresholds.error_share] : share > 0 && share < 1])
    error_message = "thresholds.database_disk, .database_memory and .error_share are shares between 0 and 1."
  }

  validation {
    condition     = var.thresholds.silent_minutes >= 5 && var.thresholds.silent_minutes <= 1380
    error_message = "thresholds.silent_minutes is between 5 (a run may fail) and 1380."
  }
}

variable "uptime_period_seconds" {
  description = "From one uptime check to the next; each wakes a proxy that has no instance."
  type        = number
  default     = 300

  validation {
    condition     = contains([60, 300, 600, 900], var.uptime_period_seconds)
    error_message = "Cloud Monitoring checks every 60, 300, 600 or 900 seconds."
  }
}
