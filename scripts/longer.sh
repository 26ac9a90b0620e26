#!/usr/bin/env bash
# What pretrained/ is to hold: C of scripts/reproduce.sh goes on, on the same V and M, with smaller steps on more
# tracks. Scored once on 200 tracks that nothing else uses. Stopped at any point and run again, it
# continues. LOGDIR (relative to the repository) and SEED are those of scripts/reproduce.sh.
set -euo pipefail
cd "$(dirname "$0")/.."

logdir=${LOGDIR:-experiment}
seed=${SEED:-1}
longer=$logdir/longer
controller=(--pop-size 48 --n-samples 4 --refine-from 1 --max-generations 60)

source scripts/environment.sh
make_environment requirements.txt

if [[ ! -e $longer/mdrnn/best.tar ]]; then
    python scripts/export.py --logdir "$logdir" --to "$longer" --stages vae mdrnn --overwrite
fi
python traincontroller.py --logdir "$longer" --seed "$((seed + 100))" --device cpu \
    --warm-start "$logdir/ctrl/best.tar" "${controller[@]}"  # other tracks than before

for tracks in 5 6; do
    scores=$longer/scores_$tracks.json
    if [[ ! -e $scores || $longer/ctrl/best.tar -nt $scores ]]; then
        python test_controller.py --logdir "$longer" --device cpu --no-render --episodes 100 \
            --seed "$tracks" --json "$scores" | tail -n 1
    fi
done
python scripts/export.py --logdir "$longer" --to "$longer/pretrained" --overwrite
