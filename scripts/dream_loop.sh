#!/usr/bin/env bash
# The paper's loop (section 5), with C trained in dreams alone: where C drives becomes data, V and M go on
# with it, and C is trained in the new dream. Real driving is in M's data and in the scores, never in C's fitness.
# Stopped at any point and run again, it continues. LOGDIR, SEED and ROUNDS choose another one.
set -euo pipefail
cd "$(dirname "$0")/.."

logdir=${LOGDIR:-dream_loop}
seed=${SEED:-0}
rounds=${ROUNDS:-6}
brown=(--policy brown --rollouts 100 --patience 100)
# By the last controller, which has found out what fools M.
driven=(--policy controller --controller dream --last --bursts 0.25)
short=(--rollouts 60 --patience 100)  # mostly on the road
whole=(--rollouts 10 --patience 0)    # to show M that off the road none comes soon
vae_rounds=3                          # in which V goes on, by an epoch
mdrnn_epochs=60                       # of each round
mdrnn=(--include_reward --seq-len 64)
controller=(--dream --temperature 1.15 --horizon 400 --components 16 --pop-size 96 --n-samples 4)
controller+=(--refine-from 0 --max-generations 45 --eval-every 15 --eval-rollouts 16)

source scripts/environment.sh
make_environment requirements.txt

# Two processes on any machine, because the files' names tell the process, and by the names a tenth is
# held out.
data() {
    python data/generation_script.py --rootdir "$logdir/data/$1" --threads 2 "${@:2}"
}

data brown "${brown[@]}" --seed "$((100 * seed))"
for round in $(seq 1 "$rounds"); do
    here=$logdir/round_$round before=$logdir/round_$((round - 1))
    common=(--logdir "$here" --seed "$seed" --device cpu)
    if [[ -e $here/scores.json ]]; then  # its last product; the data of later rounds are not its own
        echo "$here/scores.json is there"
        continue
    fi
    if ((round > 1)); then
        data "round_$round/short" "${driven[@]}" --logdir "$before" "${short[@]}" \
            --seed "$((100 * seed + 2 * round))"
        data "round_$round/whole" "${driven[@]}" --logdir "$before" "${whole[@]}" \
            --seed "$((100 * seed + 2 * round + 1))"
        if [[ ! -e $here/mdrnn/best.tar ]]; then
            python scripts/export.py --logdir "$before" --to "$here" --stages vae mdrnn --overwrite
        fi
    fi
    python trainvae.py "${common[@]}" --rootdir "$logdir/data" --batch-size 64 \
        --epochs "$((round < vae_rounds ? round : vae_rounds))"
    python trainmdrnn.py "${common[@]}" --rootdir "$logdir/data" --epochs "$((mdrnn_epochs * round))" \
        "${mdrnn[@]}"
    python traincontroller.py "${common[@]}" "${controller[@]}"
    python test_controller.py --logdir "$here" --controller dream --device cpu --no-render \
        --episodes 100 --json "$here/scores.json" | tail -n 1
done
