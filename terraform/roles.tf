locals {
  # Where Google's own roles allow more than is needed.
  custom_roles = {
    # Cloud Run's developer role may also create and delete services, and read every one.
    promoter = {
      title = "Greenroom: roll out revisions of a service"
      permissions = [
        "run.revisions.delete",
        "run.revisions.get",
        "run.revisions.list",
        "run.services.get",
        "run.services.update",
      ]
    }
    # Monitoring's viewer role may read every dashboard, alert and service.
    metrics_reader = {
      title       = "Greenroom: read metrics"
      permissions = ["monitoring.timeSeries.list"]
    }
    # Firestore's user role may also delete: the ledger is append-only.
    ledger_writer = {
      title = "Greenroom: read and append to the ledger"
      permissions = [
        "datastore.databases.get",
        "datastore.entities.create",
        "datastore.entities.get",
        "datastore.entities.list",
        "datastore.entities.update",
      ]
    }
    # Cloud Scheduler's roles either change every job or run none.
    schedule_operator = {
      title = "Greenroom: pause, resume and force a Cloud Scheduler job"
      permissions = [
        "cloudscheduler.jobs.enable",
        "cloudscheduler.jobs.get",
        "cloudscheduler.jobs.pause",
        "cloudscheduler.jobs.run",
      ]
    }
    # What `greenroom doctor` looks at, and no object, row or secret.
    inspector = {
      title = "Greenroom: inspect the deployment"
      permissions = [
        "cloudsql.instances.get",
        "run.services.get",
        # Calls with a person's own credentials count against a project.
        "serviceusage.services.use",
        "storage.buckets.get",
      ]
    }
  }
}

resource "google_project_iam_custom_role" "this" {
  for_each = local.custom_roles

  project     = local.project
  role_id     = "${var.role_prefix}.${each.key}"
  title       = each.value.title
  permissions = each.value.permissions
}
