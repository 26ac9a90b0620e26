#!/usr/bin/env bash
# From nothing to a car that learned to drive: all stages at a small scale, on the CPU.
# Run again, it continues where it was stopped. LOGDIR chooses another folder.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
make_environment requirements.txt

logdir=${LOGDIR:-quickstart}
stage() { printf '\n== %s\n' "$*"; }

stage "a controller that was trained before: pretrained/"
python test_controller.py --logdir pretrained --device cpu --video "$logdir/pretrained.mp4"

# Two processes on any machine, because the files' names tell the process, and by the names a tenth is
# held out.
stage "1/5 data: episodes with the random policy"
python data/generation_script.py --rootdir "$logdir/data" --rollouts 40 --threads 2

stage "2/5 V: the autoencoder"
python trainvae.py --logdir "$logdir" --rootdir "$logdir/data" --device cpu \
    --epochs 3 --batch-size 64

stage "3/5 M: the MDN-RNN"
python trainmdrnn.py --logdir "$logdir" --rootdir "$logdir/data" --epochs 6 --device cpu

stage "4/5 C: the controller"
python traincontroller.py --logdir "$logdir" --device cpu --display \
    --pop-size 32 --n-samples 2 --patience 100 \
    --max-generations 15 --eval-every 5 --eval-rollouts 16

stage "5/5 test: tracks that no training has seen"
score() {
    python test_controller.py --logdir "$logdir" --device cpu --no-render \
        --episodes 16 "$@"
}
score --untrained | tee "$logdir/before.txt"
score | tee "$logdir/after.txt"
python test_controller.py --logdir "$logdir" --device cpu --video "$logdir/controller.mp4"

picture=$(ls -t "$logdir"/vae/samples/reconstruction_*.png | head -n 1)
printf '\n'
printf '%-36s %s\n' \
    "before training (random controller):" "$(tail -n 1 "$logdir/before.txt")" \
    "after training, on the same tracks:" "$(tail -n 1 "$logdir/after.txt")" \
    "video of the driving:" "$logdir/controller.mp4" \
    "video of the pretrained controller:" "$logdir/pretrained.mp4" \
    "originals over reconstructions:" "$picture" \
    "logdir:" "$logdir"
