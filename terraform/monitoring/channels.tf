resource "google_monitoring_notification_channel" "email" {
  for_each = toset(var.notification_emails)

  project      = var.project
  display_name = "${var.prefix}: ${each.value}"
  type         = "email"
  labels       = { email_address = each.value }
  # Alert policies are taken off it first.
  force_delete = true
}

locals {
  channels = concat(
    sort([for channel in google_monitoring_notification_channel.email : channel.name]),
    var.notification_channels,
  )
}
