#!/bin/sh
# Builds the image that the other steps run in, from the layers of the last time.
set -eu

cache="$_REGION-docker.pkg.dev/$PROJECT_ID/$_CACHE_REPOSITORY/tools:cache"
mkdir -p "$BUILD_DIR"
docker buildx create --use --name greenroom --driver docker-container
set -- --file cloudbuild/Dockerfile --build-arg "BASE=$_BASE" --cache-from "type=registry,ref=$cache"
if [ "$_DEPLOY" = true ]; then
  set -- "$@" --cache-to "type=registry,ref=$cache,mode=max"
fi
docker buildx build "$@" --tag greenroom-tools --load cloudbuild
