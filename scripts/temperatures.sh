#!/usr/bin/env bash
# Controllers that are trained in the dream of one M, from zero, for several temperatures and seeds. Each is
# scored on 100 real test tracks and in 100 of its dreams: the best one of the evaluations on 16 real
# tracks, and the last one, which no real track has chosen. Then a table. Stopped at any point and run
# again, it continues.
#
# LOGDIR (relative to the repository) has V, M and its latents; TEMPERATURES, SEEDS and GENERATIONS choose.
set -euo pipefail
cd "$(dirname "$0")/.."

logdir=${LOGDIR:-dream_loop/round_4}
temperatures=${TEMPERATURES:-0.5 0.8 1.0 1.15 1.3}
seeds=${SEEDS:-0 1}
generations=${GENERATIONS:-80}
horizon=400
controller=(--components 0 --n-samples 12 --refine-from 0 --eval-every 20 --eval-rollouts 16)

source scripts/environment.sh
make_environment requirements.txt

for seed in $seeds; do
    for temperature in $temperatures; do
        run=$logdir/temperatures/$temperature-$seed
        mkdir -p "$run"
        for part in vae mdrnn latents; do
            [[ ! -e $logdir/$part ]] || ln -sfn "$(realpath "$logdir/$part")" "$run/$part"
        done
        common=(--logdir "$run" --device cpu)
        dream=(--temperature "$temperature" --horizon "$horizon")
        python traincontroller.py "${common[@]}" --seed "$seed" --dream "${dream[@]}" \
            --max-generations "$generations" "${controller[@]}"
        for which in best last; do
            for where in real dream; do
                scores=$run/${which}_$where.json
                if [[ -e $scores && ! $run/dream/checkpoint.tar -nt $scores ]]; then
                    continue
                fi
                options=(--controller dream --episodes 100 --seed 1)
                [[ $which == best ]] || options+=(--last)
                [[ $where == real ]] || options+=(--in-dream "${dream[@]}")
                python test_controller.py "${common[@]}" --no-render --json "$scores" "${options[@]}" |
                    tail -n 1
            done
        done
        python scripts/temperature_table.py --logdir "$logdir"
    done
done
