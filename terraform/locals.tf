data "google_project" "this" {
  project_id = var.project
}

locals {
  labels = { app = "greenroom" }

  # Who may call whom: the stack on one machine and the tests read the same table.
  callers        = jsondecode(file("${path.module}/callers.json"))
  project_number = tostring(data.google_project.this.number)

  # The name that is known before a service exists.
  urls = {
    for service in keys(local.callers.invokers) :
    service => "https://${service}-${local.project_number}.${var.region}.run.app"
  }
}
