#!/bin/bash
# A fit by 8 processes, each with a GPU, on 2 machines: sbatch examples/slurm.sh DATA OUT
# Data, OUT and the environment with lrpot must be seen by all machines.
#SBATCH --job-name=lrpot-fit
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00

data=$1
out=$2
export OMP_NUM_THREADS=$SLURM_CPUS_PER_TASK

# a job that was cut off goes on where it was when it is submitted again
if [ -e "$out/config.yaml" ]; then
    arguments=(--resume --out "$out")
else
    arguments=("$data" --out "$out" --device cuda --set training.batch_size=32)
fi

# with --kill-on-bad-exit, what one process cannot go on with ends all
srun --kill-on-bad-exit=1 lrpot fit "${arguments[@]}" --devices "$SLURM_NTASKS_PER_NODE" --nodes "$SLURM_JOB_NUM_NODES"
