#!/usr/bin/env bash
# Everything of this project that needs a GPU, in a few minutes, on a machine without a network.
#
#   benchmarks/gpu.sh --pack           here, with a network: wheels of what a bare CUDA machine lacks, into build/wheels
#   benchmarks/gpu.sh                  there: tests, kernels, training steps, decoding -> benchmarks/results/gpu_<device>.json and .md
#   benchmarks/gpu.sh --budget 300     in at most 300 seconds; what is most important comes first
#
# "Bare" is a Python with CUDA's torch, transformers, Lightning, torchmetrics, tensorboard, einops, safetensors, sentencepiece,
# Pillow, rich, matplotlib and pytest; PYTHON names it (python3). Results are also copied into the folder $OUT, if that is set.
set -euo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-python3}
PACKAGES="webdataset braceexpand jsonargparse docstring-parser typeshed-client pytest-timeout"
WHEELS=build/wheels
SITE=build/site

if [ "${1:-}" = --pack ]; then
  rm -rf "$WHEELS"
  # shellcheck disable=SC2086
  "$PYTHON" -m pip download --quiet --no-deps --only-binary=:all: --python-version "${FOR_PYTHON:-3.12}" \
    --constraint constraints.txt --dest "$WHEELS" $PACKAGES
  du -sh "$WHEELS"
  exit
fi

if compgen -G "$WHEELS/*.whl" >/dev/null; then
  rm -rf "$SITE"
  "$PYTHON" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --disable-pip-version-check \
    --target "$SITE" "$WHEELS"/*.whl
fi
# The carried packages come before what is installed, this checkout before both.
export PYTHONPATH="$PWD:$PWD/$SITE${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONUNBUFFERED=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
exec "$PYTHON" benchmarks/gpu.py "$@"
