variable "args" {
  description = "Arguments after the image's own entry point."
  type        = list(string)
  default     = []
}

variable "concurrency" {
  description = "Requests that one instance takes at once."
  type        = number
  default     = 80
}

variable "deletion_protection" {
  description = "Refuse to destroy it."
  type        = bool
}

variable "environment" {
  description = "Variables of the container."
  type        = map(string)
}

variable "health_path" {
  description = "Path that answers 200 when the process is well."
  type        = string
  default     = "/health"
}

variable "iap" {
  description = "Whether Identity-Aware Proxy lets people in, and nobody else comes in."
  type        = bool
  default     = false
}

variable "image" {
  description = "Image by digest."
  type        = string
}

variable "name" {
  description = "Name of the service."
  type        = string
}

variable "project" {
  description = "Google Cloud project."
  type        = string
}

variable "region" {
  description = "Region of the service."
  type        = string
}

variable "secrets" {
  description = "Variables of the container that hold a secret's version."
  type = map(object({
    secret  = string
    version = string
  }))
  default = {}
}

variable "service_account" {
  description = "Whom it runs as."
  type        = string
}

variable "session_affinity" {
  description = "Whether one caller's requests go to one instance, where there are several."
  type        = bool
  default     = false
}

variable "size" {
  description = "CPUs and memory of an instance, fewest and most instances."
  type = object({
    cpu    = number
    memory = string
    min    = number
    max    = number
  })
}

variable "subnetwork" {
  description = "Subnet through which private addresses are reached; null: none is."
  type        = string
  default     = null
}

variable "timeout_seconds" {
  description = "Longest time for one request."
  type        = number
}
