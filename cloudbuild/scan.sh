#!/usr/bin/env bash
# Scans every image, and fails when one has a vulnerability of _SEVERITY or above that a newer
# package mends.
set -euo pipefail

severities=(MINIMAL LOW MEDIUM HIGH CRITICAL)
from=-1
for index in "${!severities[@]}"; do
  if [[ ${severities[$index]} == "$_SEVERITY" ]]; then from=$index; fi
done
((from >= 0)) || { echo "_SEVERITY is $_SEVERITY, must be one of ${severities[*]}" >&2; exit 2; }

# Reads what gcloud lists, and prints what could be mended of the severities that are named.
judge='
import json, sys
for item in json.load(sys.stdin):
    found = item["vulnerability"]
    if found.get("fixAvailable") and found["effectiveSeverity"] in sys.argv[1:]:
        package = found["packageIssue"][0]["affectedPackage"]
        print(found["effectiveSeverity"], found["shortDescription"], "in", package)
'

failed=0
for file in "$BUILD_DIR"/images/*; do
  image=$(<"$file")
  # By digest: in the registry. By tag: in this machine's Docker engine.
  where=()
  if [[ $image == *@* ]]; then where=(--remote); fi
  scan=$(gcloud artifacts docker images scan "$image" "${where[@]}" \
    --format='value(response.scan)')
  found=$(gcloud artifacts docker images list-vulnerabilities "$scan" --format=json |
    python3 -c "$judge" "${severities[@]:$from}" | sort --unique)
  if [[ -n $found ]]; then
    printf '%s:\n%s\n' "${file##*/}" "$found" >&2
    failed=1
  else
    echo "${file##*/}: nothing of $_SEVERITY or above that could be mended"
  fi
done
exit "$failed"
