#!/usr/bin/env bash
# The full experiment, from nothing to the scores on 100 tracks: one to two hours on 2 cores, without a
# GPU. Stopped at any point and run again, it continues. LOGDIR (relative to the repository) and SEED
# choose another one.
set -euo pipefail
cd "$(dirname "$0")/.."

# All that makes the experiment what it is, beside the scripts' defaults:
logdir=${LOGDIR:-experiment}
seed=${SEED:-1}
brown=(--policy brown --rollouts 100 --patience 100)
driven=(--policy controller --rollouts 110 --patience 200)
vae=(--epochs 3 --batch-size 64 --low-rate-from 3)
mdrnn=(--epochs 40 --include_reward)
controller=(--max-generations 70)

mkdir -p "$logdir"
[[ -e $logdir/begun ]] || date > "$logdir/begun"  # for scripts/how_fast.py

# Round one is the quick start: its controller drives in the data of round two.
first=$logdir/round_1
if [[ ! -e $first/controller.mp4 ]]; then  # its last product
    LOGDIR=$first SEED=$seed bash scripts/quickstart.sh
fi
source scripts/environment.sh
make_environment requirements.txt

# data NAME OPTIONS...: the episodes of one folder. Two processes on any machine, because the files'
# names tell the process, and by the names a tenth is held out.
data() {
    python data/generation_script.py --rootdir "$logdir/data/$1" --threads 2 "${@:2}"
}
data brown "${brown[@]}" --seed "$((10 * seed + 1))"  # no tracks of round one
data driven "${driven[@]}" --seed "$((10 * seed + 2))" --logdir "$first"

python trainvae.py --logdir "$logdir" --seed "$seed" --rootdir "$logdir/data" --device cpu "${vae[@]}"
python trainmdrnn.py --logdir "$logdir" --seed "$seed" --rootdir "$logdir/data" --device cpu "${mdrnn[@]}"
python traincontroller.py --logdir "$logdir" --seed "$seed" --device cpu "${controller[@]}"

scores=$logdir/scores.json
if [[ ! -e $scores || $logdir/ctrl/best.tar -nt $scores ]]; then
    python test_controller.py --logdir "$logdir" --device cpu --no-render \
        --episodes 100 --json "$scores" | tail -n 1
else
    echo "$scores is there"
fi
