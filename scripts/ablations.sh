#!/usr/bin/env bash
# One controller for each choice and seed, with the V and M of scripts/reproduce.sh and the same
# budget of environment steps; then the table of docs/experiments.md. Stopped at any point and run
# again, it continues. About 20 minutes for each training on 2 cores.
#
#   bash scripts/ablations.sh                            all of them
#   ONLY="base no_patience" bash scripts/ablations.sh    some; the table shows all that are there
#
# LOGDIR, STEPS and SEEDS choose the experiment, the budget and the seeds.
set -euo pipefail
cd "$(dirname "$0")/.."

logdir=${LOGDIR:-experiment}
steps=${STEPS:-2000000}
seeds=${SEEDS:-0 1}
folder=$logdir/ablations

source scripts/environment.sh
make_environment requirements.txt

# choice NAME OPTIONS...: the base's options, with those that are given in their stead.
choice() {
    local name=$1 seed
    shift
    [[ -z ${ONLY:-} || " $ONLY " == *" $name "* ]] || return 0
    for seed in $seeds; do
        mkdir -p "$folder/$name-$seed"
        for stage in vae mdrnn; do
            ln -sfn "$(realpath "$models/$stage")" "$folder/$name-$seed/$stage"
        done
        python traincontroller.py --logdir "$folder/$name-$seed" --device cpu --seed "$seed" \
            --simulator envpool --pop-size 32 --n-samples 3 --patience 100 \
            --max-steps "$steps" --eval-every 1000 --eval-rollouts 100 "$@"
    done
}

models=$logdir
choice base --diagonal
choice no_patience --diagonal --patience 0
choice full_covariance
choice sigma_0.05 --diagonal --sigma 0.05
choice sigma_0.2 --diagonal --sigma 0.2
choice population_96_with_1_rollout --diagonal --pop-size 96 --n-samples 1
choice population_16_with_6_rollouts --diagonal --pop-size 16 --n-samples 6
choice growing_rollouts --diagonal --max-samples 12
choice squashed_actions --diagonal --actions squash
choice untrained_mdrnn --diagonal --untrained-mdrnn
choice no_mdrnn --diagonal --no-mdrnn

models=$logdir/round_1
choice models_of_round_1 --diagonal

# V and M without Gymnasium's frames.
models=$folder/models_of_envpool
if [[ -z ${ONLY:-} || " $ONLY " == *" frames_of_envpool "* ]]; then
    mkdir -p "$models/data"
    for name in brown driven; do
        ln -sfn "$(realpath "$logdir/data/$name")" "$models/data/$name"
    done
    for stage in "trainvae.py --epochs 3 --batch-size 64" "trainmdrnn.py --epochs 40"; do
        # shellcheck disable=SC2086
        python $stage --logdir "$models" --rootdir "$models/data" --device cpu
    done
fi
choice frames_of_envpool --diagonal

python scripts/ablation_table.py --logdir "$logdir"
