locals {
  # Written beside the proxy's queries; a test compares the two.
  firestore = jsondecode(file("${path.module}/firestore_indexes.json"))

  firestore_exempt = { for item in local.firestore.exempt : "${item.collection}.${item.field}" => item }
  firestore_ttl    = { for item in local.firestore.ttl : "${item.collection}.${item.field}" => item }
}

resource "google_firestore_database" "this" {
  project     = local.project
  name        = "(default)"
  location_id = var.region
  type        = "FIRESTORE_NATIVE"

  point_in_time_recovery_enablement = "POINT_IN_TIME_RECOVERY_ENABLED"
  delete_protection_state           = var.deletion_protection ? "DELETE_PROTECTION_ENABLED" : "DELETE_PROTECTION_DISABLED"
  # Its default would leave the database behind, and the next installation could not make it.
  deletion_policy = "DELETE"
}

resource "google_firestore_backup_schedule" "daily" {
  project   = local.project
  database  = google_firestore_database.this.name
  retention = "${local.size.daily_backup_days * 86400}s"

  daily_recurrence {}
}

resource "google_firestore_backup_schedule" "weekly" {
  count = local.size.weekly_backup_days > 0 ? 1 : 0

  project   = local.project
  database  = google_firestore_database.this.name
  retention = "${local.size.weekly_backup_days * 86400}s"

  weekly_recurrence {
    day = "SUNDAY"
  }
}

resource "google_firestore_index" "this" {
  for_each = {
    for index in local.firestore.composite :
    join(" ", concat([index.collection], [for field in index.fields : "${field[0]}:${field[1]}"])) => index
  }

  project    = local.project
  database   = google_firestore_database.this.name
  collection = each.value.collection

  dynamic "fields" {
    # Firestore adds the document's name by itself, in the last field's direction.
    for_each = [for field in each.value.fields : field if field[0] != "__name__"]

    content {
      field_path = fields.value[0]
      order      = fields.value[1]
    }
  }
}

resource "google_firestore_field" "this" {
  for_each = merge(local.firestore_exempt, local.firestore_ttl)

  project    = local.project
  database   = google_firestore_database.this.name
  collection = each.value.collection
  field      = each.value.field

  dynamic "index_config" {
    for_each = contains(keys(local.firestore_exempt), each.key) ? [true] : []

    content {}
  }

  dynamic "ttl_config" {
    for_each = contains(keys(local.firestore_ttl), each.key) ? [true] : []

    content {}
  }
}
