#!/usr/bin/env bash
# The full experiment, from nothing to the scores on 100 tracks. With two simulators it took 111
# minutes on 2 cores of a recent Intel Xeon without a GPU, and longer on older ones (README has what
# it reached); with these options it was not measured yet. Stopped at any point and run again, it continues. LOGDIR, relative to the repository,
# chooses another folder.
set -euo pipefail
cd "$(dirname "$0")/.."

# All that makes the experiment what it is:
logdir=${LOGDIR:-experiment}
brown=(--policy brown --rollouts 140 --seed 1)
driven=(--policy controller --rollouts 110 --seed 3 --patience 200)
vae=(--epochs 4 --batch-size 64 --low-rate-from 4)
mdrnn=(--epochs 40)
controller=(--pop-size 32 --n-samples 3 --patience 100 --refine-from 31
    --eval-every 54 --eval-rollouts 100 --max-generations 54 --seed 1)

# Round one is the quick start: its controller drives in the data of round two.
first=$logdir/round_1
if [[ ! -e $first/controller.mp4 ]]; then  # its last product
    LOGDIR=$first bash scripts/quickstart.sh
fi
source scripts/environment.sh
make_environment requirements.txt

# data NAME OPTIONS...: the episodes of one folder. Two processes on any machine, because the files'
# names tell the process, and by the names a tenth is held out.
data() {
    python data/generation_script.py --rootdir "$logdir/data/$1" --threads 2 "${@:2}"
}
data brown "${brown[@]}"
data driven "${driven[@]}" --logdir "$first"

python trainvae.py --logdir "$logdir" --rootdir "$logdir/data" --device cpu "${vae[@]}"
python trainmdrnn.py --logdir "$logdir" --rootdir "$logdir/data" --device cpu "${mdrnn[@]}"
python traincontroller.py --logdir "$logdir" --device cpu "${controller[@]}"

scores=$logdir/scores.txt
if [[ ! -e $scores || $logdir/ctrl/best.tar -nt $scores ]]; then
    python test_controller.py --logdir "$logdir" --device cpu --no-render \
        --episodes 100 > "$scores.part"
    mv "$scores.part" "$scores"
fi
tail -n 1 "$scores"
