# shellcheck shell=bash
# Sourced by plan.sh and apply.sh: Terraform with its state, and the variables of the deployment.

state="gs://$_STATE_BUCKET"
variables=("-var=project=$PROJECT_ID" "-var=region=$_REGION")
export TF_IN_AUTOMATION=1 TF_INPUT=0 TF_CLI_ARGS_plan=-no-color TF_CLI_ARGS_apply=-no-color

# More than one word where Terraform is started by another program. No function: what runs in the
# background has to be Terraform itself for a signal to reach it.
read -ra terraform <<<"${TERRAFORM:-terraform}"
terraform+=(-chdir=terraform)

# Fetch an object of the state's bucket; status 1 when there is none.
fetch() {
  gcloud storage objects describe "$state/$1" --format='value(name)' >/dev/null 2>&1 || return 1
  gcloud storage cp "$state/$1" "$2" >/dev/null
}

initialise() {
  mkdir -p "$BUILD_DIR"
  "${terraform[@]}" init -backend-config="bucket=$_STATE_BUCKET" >/dev/null
  local file="$BUILD_DIR/terraform.tfvars"
  if ! gcloud storage cp "$state/terraform.tfvars" "$file" >/dev/null; then
    echo "$state/terraform.tfvars can't be read: without it, the plan would undo the deployment." \
      "Put the variables of the first apply there (gcloud storage cp)" >&2
    exit 1
  fi
  variables+=("-var-file=$file")
}
