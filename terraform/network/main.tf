resource "google_compute_network" "this" {
  project                 = var.project
  name                    = var.name
  auto_create_subnetworks = false
}

resource "google_compute_subnetwork" "this" {
  project       = var.project
  region        = var.region
  name          = var.name
  network       = google_compute_network.this.id
  ip_cidr_range = var.subnet_range

  # Google's APIs without a public address.
  private_ip_google_access = true

  log_config {
    aggregation_interval = "INTERVAL_10_MIN"
    flow_sampling        = 0.1
    metadata             = "INCLUDE_ALL_METADATA"
  }
}

# Nothing listens here: the services only call out.
resource "google_compute_firewall" "deny_ingress" {
  project   = var.project
  name      = "${var.name}-deny-ingress"
  network   = google_compute_network.this.id
  direction = "INGRESS"
  priority  = 65534

  source_ranges = ["0.0.0.0/0"]

  deny {
    protocol = "all"
  }
}

resource "google_compute_global_address" "services" {
  project       = var.project
  name          = "${var.name}-services"
  network       = google_compute_network.this.id
  purpose       = "VPC_PEERING"
  address_type  = "INTERNAL"
  prefix_length = 20
}

resource "google_service_networking_connection" "this" {
  network                 = google_compute_network.this.id
  service                 = "servicenetworking.googleapis.com"
  reserved_peering_ranges = [google_compute_global_address.services.name]

  # Google refuses to delete it for days after the last database, and the network for as long as
  # the peering is there. Releases of the provider before REMOVE_PEERING know nothing but ABANDON.
  deletion_policy = var.peering_deletion_policy

  # Google remembers the last installation's range for a network of the same name, and refuses
  # another one as a new connection.
  update_on_creation_fail = true
}

# Created with the network and destroyed before it: what uses the subnet depends on this.
resource "time_sleep" "release" {
  destroy_duration = var.release_wait
  triggers = {
    network    = google_compute_network.this.id
    subnetwork = google_compute_subnetwork.this.id
  }
}
