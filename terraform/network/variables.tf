variable "name" {
  description = "Name of the network and the subnet."
  type        = string
}

variable "peering_deletion_policy" {
  description = "What destroy does about the peering with Google's network."
  type        = string
}

variable "project" {
  description = "Google Cloud project."
  type        = string
}

variable "region" {
  description = "Region of the subnet."
  type        = string
}

variable "release_wait" {
  description = "How long destroy waits until Cloud Run has given the subnet's addresses back."
  type        = string
}

variable "subnet_range" {
  description = "Addresses of the subnet."
  type        = string
}
