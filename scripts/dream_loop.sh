#!/usr/bin/env bash
# The paper's loop (section 5), with C trained in dreams alone: where C drives becomes data, V and M go on
# with it, and C is trained in the new dream. Real driving is in M's data and in the scores, never in C's fitness.
# Stopped at any point and run again, it continues. LOGDIR, SEED and ROUNDS choose another one.
set -euo pipefail
cd "$(dirname "$0")/.."

logdir=${LOGDIR:-dream_loop}
seed=${SEED:-0}
rounds=${ROUNDS:-4}
brown=(--policy brown --rollouts 100 --patience 100)
# In full, by the last controller, which has found out what fools M.
driven=(--policy controller --controller dream --last --rollouts 60 --bursts 0.25 --patience 0)
vae_epochs=1  # of each round
mdrnn_epochs=25
mdrnn=(--include_reward --seq-len 128)  # a dream is longer than the usual windows
controller=(--dream --temperature 1.15 --horizon 400 --n-samples 12 --refine-from 0)
controller+=(--max-generations 80 --eval-every 20 --eval-rollouts 16)

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
        data "round_$round" "${driven[@]}" --logdir "$before" --seed "$((100 * seed + round))"
        if [[ ! -e $here/mdrnn/best.tar ]]; then
            python scripts/export.py --logdir "$before" --to "$here" --stages vae mdrnn --overwrite
        fi
    fi
    python trainvae.py "${common[@]}" --rootdir "$logdir/data" --epochs "$((vae_epochs * round))" --batch-size 64
    python trainmdrnn.py "${common[@]}" --rootdir "$logdir/data" --epochs "$((mdrnn_epochs * round))" \
        "${mdrnn[@]}"
    python traincontroller.py "${common[@]}" "${controller[@]}"
    python test_controller.py --logdir "$here" --controller dream --device cpu --no-render \
        --episodes 100 --json "$here/scores.json" | tail -n 1
done
