#!/usr/bin/env bash
# Train on the devices of one node, or of several:
#
#   launch/torchrun.sh fit --config experiments/eve_7b/2_pretrain.yaml          one node, all of its GPUs
#   NODES=2 NODE_RANK=0 HEAD=node-a launch/torchrun.sh fit --config ...         on the first of two nodes
#   NODES=2 NODE_RANK=1 HEAD=node-a launch/torchrun.sh fit --config ...         on the second
#
# DEVICES   processes per node; default: one per GPU
# PORT      of the first node, where the others find it; default 29500
# RESTARTS  how often a job that died is begun again from its newest checkpoint; default 0
# PYTHON    default: python of this shell, or .venv/bin/python
#
# When one process dies, torchrun ends the others; calling the same again goes on from the newest checkpoint.
set -euo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || command -v python)}
DEVICES=${DEVICES:-$(nvidia-smi --list-gpus | wc -l)}
NODES=${NODES:-1}
if [ "$NODES" = 1 ]; then
  where=(--standalone)
else
  where=(--nnodes="$NODES" --node-rank="${NODE_RANK:?give NODE_RANK, 0 on the first node}"
    --master-addr="${HEAD:?give HEAD, the name of the first node}" --master-port="${PORT:-29500}")
fi

subcommand=${1:?give what to do: fit, validate, test or predict, then the arguments of train.py}
shift
exec "$PYTHON" -m torch.distributed.run "${where[@]}" --nproc-per-node="$DEVICES" --max-restarts="${RESTARTS:-0}" \
  train.py "$subcommand" "$@" --trainer.devices="$DEVICES" --trainer.num_nodes="$NODES"
