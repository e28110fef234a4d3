#!/usr/bin/env bash
# Asks the deployed proxy, as a caller would.
set -euo pipefail

if [[ $_DEPLOY != true ]]; then
  echo "a pull request deploys nothing that could be asked"
  exit
fi
url=$(python3 -c 'import json, sys; print(json.load(sys.stdin)["proxy"])' <"$BUILD_DIR/urls.json")
# shellcheck source=/dev/null
. "$BUILD_DIR/environment"
options=()
if [[ " ${GREENROOM_PUBLIC-} " == *" proxy "* ]]; then options+=(--public); fi
.venv/bin/python -m cloudbuild.smoke --url "$url" "${options[@]}"
