#!/usr/bin/env bash
# Train on the devices of one node, or of several:
#
#   launch/torchrun.sh fit --config experiments/eve_7b/2_pretrain.yaml          one node, all of its GPUs
#   NODES=2 HEAD=node-a launch/torchrun.sh fit --config ...                     the same command on both of two nodes
#
# DEVICES   processes per node; default: one per GPU
# HEAD      hostname of the node where all nodes rendezvous
# PORT      port on that node; default 29500
# JOB       rendezvous id, to separate several jobs on the same nodes; default lit_eve
# RESTARTS  how often a failed job restarts from its newest checkpoint; default 0
# PYTHON    default: .venv/bin/python, or python of this shell
#
# When one process dies, torchrun ends the others on its node. Those on other nodes end when its messages are missing, or restart
# with it if RESTARTS allows. Repeat the command to resume from the newest checkpoint.
set -euo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || command -v python)}
DEVICES=${DEVICES:-$(nvidia-smi --list-gpus | wc -l)}
NODES=${NODES:-1}
if [ "$NODES" = 1 ]; then
  where=(--standalone)
else
  where=(--nnodes="$NODES" --rdzv-backend=c10d --rdzv-id="${JOB:-lit_eve}"
    --rdzv-endpoint="${HEAD:?give HEAD, the name of one of the nodes}:${PORT:-29500}")
fi

subcommand=${1:?give what to do: fit, validate, test or predict, then the arguments of train.py}
shift
exec "$PYTHON" -m torch.distributed.run "${where[@]}" --nproc-per-node="$DEVICES" --max-restarts="${RESTARTS:-0}" \
  train.py "$subcommand" "$@" --trainer.devices="$DEVICES" --trainer.num_nodes="$NODES"
