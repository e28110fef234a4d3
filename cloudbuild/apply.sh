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
child='' paused=''
# Run a command so that a signal is heeded at once: bash looks at one only between commands that
# it waits for in the foreground.
run() {
  local status=0
  "$@" &
  child=$!
  wait "$child" || status=$?
  child=''
  return "$status"
}
resume() {
  for _ in 1 2 3; do
    if gcloud scheduler jobs resume "${job[@]}" >/dev/null; then
      echo "promote is resumed"
      # Without the 0 it would be the status from before the trap.
      return 0
    fi
    sleep 5
  done
  echo "promote is still paused: run greenroom resume" >&2
  return 1
}
end() {
  local status=$?
  # A second signal must not cut this off.
  trap '' INT TERM
  if [[ -n $child ]]; then kill -TERM "$child" 2>/dev/null || true; fi
  # Before Terraform has ended: that may take longer than this step is given.
  if [[ -n $paused ]]; then resume || status=1; fi
  # It writes its state before it ends.
  if [[ -n $child ]]; then wait "$child" || true; fi
  exit "$status"
}
trap end EXIT
trap 'exit 143' INT TERM

errors="$BUILD_DIR/errors"
if ! before=$(gcloud scheduler jobs describe "${job[@]}" --format='value(state)' 2>"$errors"); then
  cat "$errors" >&2
  # Any other error says nothing on whether promote runs.
  grep --quiet NOT_FOUND "$errors" || exit 1
fi
if [[ $before == ENABLED ]]; then
  # First: the build may be ended at any moment.
  paused=true
  gcloud scheduler jobs pause "${job[@]}" >/dev/null
  echo "promote is paused; a run that is under way has $_SETTLE_SECONDS s to end"
  run sleep "$_SETTLE_SECONDS"
else
  echo "promote does not run: the job is ${before:-not there yet}"
fi

plan="$BUILD_DIR/plan"
# Another deployment may hold the state.
run "${terraform[@]}" plan -lock-timeout=30m -out="$plan" "${variables[@]}" "-var-file=$images"
run "${terraform[@]}" apply -lock-timeout=30m "$plan"
gcloud storage cp "$images" "$state/images.tfvars.json" >/dev/null
"${terraform[@]}" output -raw environment >"$BUILD_DIR/environment"
"${terraform[@]}" output -json urls >"$BUILD_DIR/urls.json"
