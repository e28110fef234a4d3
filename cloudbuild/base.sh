#!/usr/bin/env bash
# Writes the base image with the digest that it has now: every image is built from the same.
set -euo pipefail

digest=$(docker buildx imagetools inspect "$_BASE" --format '{{.Manifest.Digest}}')
[[ $digest =~ ^sha256:[0-9a-f]{64}$ ]] || { echo "$_BASE has no digest: $digest" >&2; exit 1; }
mkdir -p "$BUILD_DIR/images"
# A tag beside a digest is ignored; without it, the name is that of a release.
echo "${_BASE%:*}@$digest" | tee "$BUILD_DIR/base"
