variable "build" {
  description = "Builds from a GitHub repository (OWNER/NAME): tests and a plan for each pull request, a deployment for each commit on branch. Null: none. With app_installation_id and token_secret (of Google's Cloud Build app on GitHub) Cloud Build's triggers start them; without, a workflow on GitHub does, by Workload Identity Federation and without a key. repository_id (gh api repos/OWNER/NAME --jq .id) is believed beside the name, which somebody else may take after the repository is renamed or deleted."
  type = object({
    repository          = string
    repository_id       = optional(number)
    app_installation_id = optional(number)
    approval            = optional(bool, false)
    branch              = optional(string, "main")
    pool                = optional(string, "greenroom-github")
    state_bucket        = optional(string)
    token_secret        = optional(string)
  })
  default = null

  validation {
    condition     = var.build == null ? true : can(regex("^[A-Za-z0-9](-?[A-Za-z0-9])*/[A-Za-z0-9._-]+$", var.build.repository))
    error_message = "build.repository is OWNER/NAME, with no https:// and no .git."
  }

  validation {
    condition     = try(var.build.repository_id == null || (var.build.repository_id > 0 && floor(var.build.repository_id) == var.build.repository_id), true)
    error_message = "build.repository_id is a whole number, the answer of: gh api repos/OWNER/NAME --jq .id."
  }

  validation {
    condition     = try((var.build.app_installation_id == null) == (var.build.token_secret == null), true)
    error_message = "build.app_installation_id and build.token_secret belong together: give both for Cloud Build's triggers, neither for builds that a workflow on GitHub starts."
  }

  validation {
    condition     = try(can(regex("^projects/[^/]+/secrets/[^/]+/versions/([0-9]+|latest)$", var.build.token_secret)), false) || try(var.build.token_secret == null, true)
    error_message = "build.token_secret is projects/PROJECT/secrets/NAME/versions/VERSION; the token itself stays in Secret Manager."
  }

  validation {
    condition     = try(can(regex("^[a-z0-9][a-z0-9-]{2,30}[a-z0-9]$", var.build.pool)) && !startswith(var.build.pool, "gcp-"), true)
    error_message = "build.pool has 4 to 32 lower-case letters, digits and hyphens. A deleted pool's name stays taken for 30 days: installing anew within them needs another."
  }

  validation {
    condition     = var.build == null ? true : can(regex("^[A-Za-z0-9._/-]+$", var.build.branch))
    error_message = "build.branch is a branch's name, such as main."
  }
}
