module "network" {
  source = "./network"

  name         = "greenroom"
  project      = local.project
  region       = var.region
  release_wait = var.release_wait
  subnet_range = var.subnet_range
}
