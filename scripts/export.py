"""Copy the best V, M and C of an experiment, weights only, into a logdir to give away.

python scripts/export.py --logdir experiment --to pretrained
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from envs.parallel import load_controller
from utils.checkpoint import load_checkpoint, save_checkpoint, stage_weights
from utils.cli import add_logdir, run_script, script_parser

# What is left of a checkpoint: no state of optimizer or scheduler.
KEPT = ("epoch", "precision", "reward", "state_dict", "driving", "about")


def main() -> None:
    parser = script_parser("Copy the best V, M and C of an experiment, weights only.")
    add_logdir(parser)
    parser.add_argument("--to", type=Path, default=Path("pretrained"), help="folder to write")
    args = parser.parse_args()
    scripts = {"vae": "trainvae", "mdrnn": "trainmdrnn", "ctrl": "traincontroller"}
    best = stage_weights(args.logdir, "ctrl", "python traincontroller.py")
    if load_controller(best)[1].memory != "trained":
        del scripts["mdrnn"]  # it drives without
    states = {
        stage: load_checkpoint(stage_weights(args.logdir, stage, f"python {script}.py"))
        for stage, script in scripts.items()
    }  # all of them, or none is written
    for stage, state in states.items():
        path = args.to / stage / "best.tar"
        save_checkpoint(path, {key: state[key] for key in KEPT if key in state})
        print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    run_script(main)
