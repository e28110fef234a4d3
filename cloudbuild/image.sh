#!/usr/bin/env bash
# Builds one image: image.sh NAME DOCKERFILE. On the main branch it is pushed with its SBOM and
# provenance, and its reference by digest goes to BUILD_DIR/images/NAME.
set -euo pipefail

name=$1 dockerfile=$2
registry="$_REGION-docker.pkg.dev/$PROJECT_ID"
cache="type=registry,ref=$registry/$_CACHE_REPOSITORY/$name:cache"
image="$registry/$_REPOSITORY/$name"
options=(
  --builder greenroom --file "$dockerfile" --cache-from "$cache"
  --build-arg "BASE=$(<"$BUILD_DIR/base")" --build-arg "GIT_COMMIT=$COMMIT_SHA"
  --build-arg GIT_DIRTY=false
)
if [[ $name == trainer ]]; then options+=(--build-arg "ACCELERATOR=$_ACCELERATOR"); fi

if [[ $_DEPLOY != true ]]; then
  docker buildx build "${options[@]}" --tag "$image:$BUILD_ID" --load .
  echo "$image:$BUILD_ID" >"$BUILD_DIR/images/$name"
  exit
fi

metadata=$(mktemp)
docker buildx build "${options[@]}" --cache-to "$cache,mode=max" --tag "$image:$BUILD_ID" --push \
  --sbom=true --provenance=mode=max --metadata-file "$metadata" .
digest=$(python3 -c 'import json, sys; print(json.load(sys.stdin)["containerimage.digest"])' \
  <"$metadata")
[[ $digest =~ ^sha256:[0-9a-f]{64}$ ]] || { echo "$name: no digest: $digest" >&2; exit 1; }
echo "$image@$digest" | tee "$BUILD_DIR/images/$name"
