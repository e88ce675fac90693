#!/usr/bin/env bash
# A step of a release pipeline: prune, validate, gate. The small model reaches DIST only if every limit holds.
#
#   examples/pipeline.sh MODEL CALIB LABELLED DIST [LIMIT...]
#
#   examples/pipeline.sh models/digits_resnet.onnx models/digits.npz models/digits_test.npz dist --max-drop 2
#
# CALIB: unlabelled inputs, LABELLED: a .npz of inputs and `labels`, LIMIT: options of `onnxprune gate`. TARGET in the
# environment says how small (default macs=0.5). Exit code 1 means that a limit did not hold; DIST then has the reports
# of the try under DIST/failed, and the model that it had before.
set -euo pipefail

model=$1 calib=$2 labelled=$3 dist=$4
shift 4
name=$(basename "$model")
mkdir -p "$dist"
try=$(mktemp -d "$dist/try.XXXXXX")
trap 'rm -rf "$try"' EXIT

onnxprune "$model" --target "${TARGET:-macs=0.5}" --calib "$calib" -o "$try/$name" \
    --report "$try/prune.json" --report "$try/prune.html" --plan "$try/plan.json" -q

onnxprune validate "$model" "$try/$name" --eval "$labelled" --labels labels \
    --report "$try/validate.json" --report "$try/validate.xml" -q

if ! onnxprune gate "$try/prune.json" "$try/validate.json" --exact "$@"; then
    rm -rf "$dist/failed" "$try/$name"
    mv "$try" "$dist/failed"
    exit 1
fi
rm -rf "$dist/failed"
mv -f "$try"/*.html "$try"/*.json "$try"/*.xml "$dist/"
mv -f "$try/$name" "$dist/$name"
