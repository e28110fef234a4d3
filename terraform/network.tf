module "network" {
  source = "./network"

  name                    = "greenroom"
  peering_deletion_policy = var.peering_deletion_policy
  project                 = local.project
  region                  = var.region
  release_wait            = var.release_wait
  subnet_range            = var.subnet_range
}
