#!/usr/bin/env bash
# From nothing to a car that learned to drive: all stages at a small scale, on the CPU.
# Run again, it continues where it was stopped. LOGDIR chooses another folder, SEED other random numbers.
set -euo pipefail
cd "$(dirname "$0")/.."

logdir=${LOGDIR:-quickstart}
seed=${SEED:-0}
cat << TEXT
This will, on the CPU, in 5 to 11 minutes on 2 cores after the installation:
  - install torch and the rest into .venv, where that was not done (6 GB, a few minutes)
  - show the trained controller of pretrained/ in a video
  - play 32 random episodes, train V, M and C on them, and score C before and after (150 MB)
All that it makes is in $logdir/. Stopped and run again, it continues.
TEXT

source scripts/environment.sh
make_environment requirements.txt

stage() { printf '\n== %s\n' "$*"; }
made() { printf -- '-- made: %s\n' "$*"; }

stage "a controller that was trained before: pretrained/"
python test_controller.py --logdir pretrained --device cpu --video "$logdir/pretrained.mp4"
made "$logdir/pretrained.mp4"

# Two processes on any machine, because the files' names tell the process.
stage "1/5 data: episodes with the random policy"
python data/generation_script.py --rootdir "$logdir/data" --rollouts 32 --threads 2 --seed "$seed" \
    --patience 100
made "$logdir/data/thread_*/rollout_*.npz"

stage "2/5 V: the autoencoder"
python trainvae.py --logdir "$logdir" --rootdir "$logdir/data" --seed "$seed" --device cpu \
    --epochs 2 --low-rate-from 2
made "$logdir/vae/best.tar, pictures in $logdir/vae/samples/"

stage "3/5 M: the MDN-RNN"
python trainmdrnn.py --logdir "$logdir" --rootdir "$logdir/data" --seed "$seed" --device cpu \
    --epochs 40
made "$logdir/mdrnn/best.tar"

stage "4/5 C: the controller"
python traincontroller.py --logdir "$logdir" --seed "$seed" --device cpu --display \
    --n-samples 1 --patience 50 --max-generations 19 --refine-from 0 \
    --eval-every 19 --eval-rollouts 16
made "$logdir/ctrl/best.tar"

stage "5/5 test: tracks that no training has seen"
score() { python test_controller.py --logdir "$logdir" --device cpu --no-render --episodes 16 "$@"; }
score --untrained --json "$logdir/before.json" | tee "$logdir/before.txt"
score --json "$logdir/after.json" | tee "$logdir/after.txt"
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
