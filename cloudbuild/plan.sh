#!/usr/bin/env bash
# Shows a pull request's plan, with the images that were applied last.
set -euo pipefail

if [[ $_DEPLOY == true ]]; then
  echo "the main branch makes its plan when it applies it"
  exit
fi
# shellcheck source=cloudbuild/state.sh
. cloudbuild/state.sh
initialise
if fetch images.tfvars.json "$BUILD_DIR/applied.tfvars.json"; then
  variables+=("-var-file=$BUILD_DIR/applied.tfvars.json")
fi
# Who only looks may not lock, and needs not.
"${terraform[@]}" plan -lock=false "${variables[@]}"
