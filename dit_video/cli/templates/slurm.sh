#!/usr/bin/env bash
# @{nodes} node(s) with @{gpus} GPU(s) each. Written by
#   @{made_by}
#SBATCH --job-name=@{name}
#SBATCH --nodes=@{nodes}
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=@{gpus}
#SBATCH --exclusive
#SBATCH --partition=@{partition}
#SBATCH --account=@{account}
#SBATCH --reservation=@{reservation}
#SBATCH --time=@{time}
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=@{name}-%j.log
set -euo pipefail

# One process a node sees all its GPUs; the first node's is where they meet. Each one's number is its SLURM_PROCID.
read -r first < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
export JAX_COORDINATOR_ADDRESS="$first:$((20000 + SLURM_JOB_ID % 20000))"
export JAX_NUM_PROCESSES="$SLURM_JOB_NUM_NODES"

# SIGTERM, two minutes before the time is up, saves a checkpoint and ends with 75.
code=0
srun --kill-on-bad-exit=1 @{container} @{command} || code=$?

# Bad input (2), what is missing (3), too little memory (4) and numbers that are not finite (5) do not get better by
# trying again; all else goes on from the last checkpoint.
case $code in
  0 | 2 | 3 | 4 | 5) exit "$code" ;;
esac
if ((${SLURM_RESTART_COUNT:-0} < @{max_restarts})); then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
