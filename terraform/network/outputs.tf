output "network" {
  description = "Id of the network, for what gets an address of the peered range."
  value       = google_compute_network.this.id

  depends_on = [google_service_networking_connection.this]
}

output "subnetwork" {
  description = "Id of the subnet for Direct VPC egress. Destroying what uses it comes first, then the wait, then the subnet."
  value       = time_sleep.release.triggers.subnetwork
}
