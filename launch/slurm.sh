#!/usr/bin/env bash
# Train on the nodes of a SLURM cluster:
#
#   sbatch --nodes=2 --gpus-per-node=8 --ntasks-per-node=8 launch/slurm.sh fit --config experiments/eve_7b/2_pretrain.yaml
#
# One task per GPU. A job that is requeued (--requeue, a preemption, a broken node) goes on from its newest checkpoint.
#SBATCH --job-name=lit_eve
#SBATCH --nodes=1
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --time=48:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}"

PYTHON=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || command -v python)}
subcommand=${1:?give what to do: fit, validate, test or predict, then the arguments of train.py}
shift
# --kill-on-bad-exit: when one process dies, the others must not wait for it.
srun --kill-on-bad-exit=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" "$PYTHON" train.py "$subcommand" "$@" \
  --trainer.devices="$SLURM_NTASKS_PER_NODE" --trainer.num_nodes="$SLURM_NNODES"
