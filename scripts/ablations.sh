#!/usr/bin/env bash
# One controller for each choice and seed, with the same V and M and the same budget of environment
# steps; each is scored on 100 test tracks, others than those of the published scores, so
# that nothing is chosen by these. Then a table of all scores, which are kept in RESULTS
# (LOGDIR/ablations/results.json). Stopped at any point and run again, it continues, and what has its
# scores in RESULTS is not trained again, on whatever machine that was.
#
#   bash scripts/ablations.sh                            all of them
#   ONLY="base no_patience" bash scripts/ablations.sh    some; the table shows all that are there
#
# LOGDIR (relative to the repository), STEPS and SEEDS choose experiment, budget and seeds; MODELS
# is the logdir with V and M, if not LOGDIR: MODELS=pretrained takes the shipped ones, which need no
# training. `models_of_round_1` needs what scripts/reproduce.sh left in LOGDIR, and is compared with
# its V and M: it is not among the choices with another MODELS.
set -euo pipefail
cd "$(dirname "$0")/.."

logdir=${LOGDIR:-experiment}
steps=${STEPS:-2000000}
seeds=${SEEDS:-0 1}
models=${MODELS:-$logdir}
folder=$logdir/ablations
results=${RESULTS:-$folder/results.json}
all="base components_16 components_32 no_patience sigma_0.05 sigma_0.2 population_96_with_1_rollout
    population_16_with_6_rollouts squashed_actions random_m no_m refined refined_unscreened"
[[ $models == "$logdir" ]] && all+=" models_of_round_1"
only=${ONLY:-$all}
for name in $only; do
    if [[ ! $all =~ (^|[[:space:]])$name($|[[:space:]]) ]]; then
        echo "error: ONLY names '$name', which with MODELS=$models is none of:" $all >&2
        exit 2
    fi
done
chosen() { [[ $only =~ (^|[[:space:]])$1($|[[:space:]]) ]]; }

source scripts/environment.sh
make_environment requirements.txt

# scored NAME-SEED: whether RESULTS has that run with at least STEPS steps.
scored() {
    local steps_there
    steps_there=$(sed -n "s/^\"$1\": {\"steps\": \([0-9]*\),.*/\1/p" "$results" 2> /dev/null) || true
    [[ -n $steps_there && $steps_there -ge $steps ]]
}

# unscored NAME: the seeds of a choice that are left to train; none, where it was not chosen.
unscored() {
    local seed
    chosen "$1" || return 0
    for seed in $seeds; do
        if scored "$1-$seed"; then
            echo "$results: has the scores of $1-$seed" >&2
        else
            echo "$seed"
        fi
    done
}

# need NAME PATH...: ends here, before anything is trained, where a path that NAME needs is missing.
need() {
    local name=$1 path
    [[ -n $(unscored "$name" 2> /dev/null) ]] || return 0
    for path in "${@:2}"; do
        if [[ ! -e $path ]]; then
            echo "error: $name needs $path, which does not exist; run scripts/reproduce.sh first, or" \
                "name other choices in ONLY" >&2
            exit 2
        fi
    done
}

# choice NAME MODELS OPTIONS...: trained with the V and M in the logdir MODELS.
choice() {
    local name=$1 models=$2 seed run stage
    shift 2
    for seed in $(unscored "$name"); do
        run=$folder/$name-$seed
        mkdir -p "$run"
        for stage in vae mdrnn; do
            ln -sfn "$(realpath "$models/$stage")" "$run/$stage"
        done
        python traincontroller.py --logdir "$run" --device cpu --seed "$seed" \
            --refine-from 0 --max-steps "$steps" --eval-every 1000 "$@"
        if [[ ! -e $run/test.json || $run/ctrl/checkpoint.tar -nt $run/test.json ]]; then
            python test_controller.py --logdir "$run" --device cpu --no-render \
                --episodes 100 --seed 1 --json "$run/test.json" > /dev/null
        fi
        python scripts/ablation_table.py --logdir "$logdir" --results "$results" > /dev/null
    done
}

for name in $only; do
    case $name in
        models_of_round_1) need $name "$logdir"/round_1/{vae,mdrnn}/best.tar ;;
        *) need $name "$models"/{vae,mdrnn}/best.tar ;;
    esac
done

choice base "$models"
choice components_16 "$models" --components 16
choice components_32 "$models" --components 32
choice no_patience "$models" --patience 0
choice sigma_0.05 "$models" --sigma 0.05
choice sigma_0.2 "$models" --sigma 0.2
choice population_96_with_1_rollout "$models" --pop-size 96 --n-samples 1
choice population_16_with_6_rollouts "$models" --pop-size 16 --n-samples 6
choice squashed_actions "$models" --actions squash
choice random_m "$models" --memory random
choice no_m "$models" --memory none
choice refined "$models" --refine-from 21
choice refined_unscreened "$models" --refine-from 21 --refine-screen 0
choice models_of_round_1 "$logdir/round_1"

python scripts/ablation_table.py --logdir "$logdir" --results "$results"
