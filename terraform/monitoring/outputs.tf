output "alert_policies" {
  description = "Names of the alert policies, as people see them."
  value = sort(concat(
    [for policy in google_monitoring_alert_policy.query : policy.display_name],
    [for policy in google_monitoring_alert_policy.uptime : policy.display_name],
    [for policy in google_monitoring_alert_policy.burn : policy.display_name],
    [google_monitoring_alert_policy.rollout.display_name],
  ))
}

output "dashboard_url" {
  description = "The dashboard, in the console."
  value       = "https://console.cloud.google.com/monitoring/dashboards/builder/${reverse(split("/", google_monitoring_dashboard.greenroom.id))[0]}?project=${var.project}"
}

output "notification_channels" {
  description = "Where alerts go."
  value       = local.channels
}
