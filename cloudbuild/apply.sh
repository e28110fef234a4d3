#!/usr/bin/env bash
# Pauses promote, applies a fresh plan with this build's images, and resumes promote - also when
# that failed. A job that somebody had paused before stays paused.
set -euo pipefail

if [[ $_DEPLOY != true ]]; then
  echo "a pull request applies nothing"
  exit
fi
# shellcheck source=cloudbuild/state.sh
. cloudbuild/state.sh
initialise

images="$BUILD_DIR/images.tfvars.json"
for file in "$BUILD_DIR"/images/*; do
  printf '%s "%s": "%s"' "${separator-}" "${file##*/}" "$(<"$file")"
  separator=","
done | { echo "{\"images\": {$(cat)}}"; } >"$images"

job=(promote "--location=$_REGION")
resume() {
  # A second signal must not cut this off.
  trap '' INT TERM
  for _ in 1 2 3; do
    if gcloud scheduler jobs resume "${job[@]}" >/dev/null; then
      echo "promote is resumed"
      return
    fi
    sleep 5
  done
  echo "promote is still paused: run greenroom resume" >&2
  exit 1
}
errors="$BUILD_DIR/errors"
if ! before=$(gcloud scheduler jobs describe "${job[@]}" --format='value(state)' 2>"$errors"); then
  cat "$errors" >&2
  # Any other error says nothing on whether promote runs.
  grep --quiet NOT_FOUND "$errors" || exit 1
fi
if [[ $before == ENABLED ]]; then
  # First: the build may be ended at any moment.
  trap resume EXIT
  trap 'exit 130' INT TERM
  gcloud scheduler jobs pause "${job[@]}" >/dev/null
  echo "promote is paused; a run that is under way has $_SETTLE_SECONDS s to end"
  sleep "$_SETTLE_SECONDS"
else
  echo "promote does not run: the job is ${before:-not there yet}"
fi

plan="$BUILD_DIR/plan"
tf plan -out="$plan" "${variables[@]}" "-var-file=$images"
tf apply "$plan"
gcloud storage cp "$images" "$state/images.tfvars.json" >/dev/null
tf output -raw environment >"$BUILD_DIR/environment"
tf output -json urls >"$BUILD_DIR/urls.json"
