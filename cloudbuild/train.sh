#!/usr/bin/env bash
# Submits a training job when what a model is made from is not what was trained last: the
# trainer with its parameters and its data.lock, and predict, whose scorer it evaluates with.
set -euo pipefail

if [[ $_DEPLOY != true ]]; then
  echo "a pull request trains nothing"
  exit
fi
# shellcheck source=cloudbuild/state.sh
. cloudbuild/state.sh

# Of the files, not of the commits: a build need not have the history, and one that failed
# before this step is made up for by the next. What the tests compiled here is no source.
inputs=$(find trainer functions/predict \
  -type f -not -path '*/__pycache__/*' -not -name '*.so' -print0 |
  LC_ALL=C sort --zero-terminated | xargs --null sha256sum | sha256sum | cut --delimiter=' ' --fields=1)
trained="$BUILD_DIR/trained"
if fetch trained "$trained" && [[ $(<"$trained") == "$inputs" ]]; then
  echo "trained already: nothing in trainer/ and functions/predict/ has changed"
  exit
fi

# shellcheck source=/dev/null
. "$BUILD_DIR/environment"
# Options are words.
# shellcheck disable=SC2086
.venv/bin/python -m trainer submit --no-wait --commit "$COMMIT_SHA" \
  --image "$(<"$BUILD_DIR/images/trainer")" $_SUBMIT_OPTIONS \
  -- train --register "$GREENROOM_MODEL" $_TRAIN_OPTIONS
echo "$inputs" >"$trained"
gcloud storage cp "$trained" "$state/trained" >/dev/null
