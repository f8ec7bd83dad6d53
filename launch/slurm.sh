#!/usr/bin/env bash
# Train on the nodes of a SLURM cluster, one task per GPU:
#
#   sbatch --nodes=2 launch/slurm.sh fit --config experiments/eve_7b/2_pretrain.yaml
#
# If a job is preempted, loses a node or reaches its time limit, it is queued again and resumes from its newest checkpoint. A failed
# job is queued again up to RESTARTS times (default 3); its log has the error.
#SBATCH --job-name=lit_eve
#SBATCH --nodes=1
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --time=48:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}"

PYTHON=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || command -v python)}
subcommand=${1:?give what to do: fit, validate, test or predict, then the arguments of train.py}
shift

out_of_time() {
  echo "out of time; queued again"
  scontrol requeue "$SLURM_JOB_ID"
  exit 0
}
trap out_of_time USR1 # two minutes before the end, to this script only

# --kill-on-bad-exit: when one task dies, the others must not wait for it. --wait: tasks may end long before the one that exports.
srun --kill-on-bad-exit=1 --wait=0 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" "$PYTHON" train.py "$subcommand" "$@" \
  --trainer.devices="$SLURM_NTASKS_PER_NODE" --trainer.num_nodes="$SLURM_NNODES" &
status=0
wait $! || status=$? # a signal is heard while waiting
if [ "$status" -ne 0 ] && [ "${SLURM_RESTART_COUNT:-0}" -lt "${RESTARTS:-3}" ]; then
  echo "failed with status $status; queued again"
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
