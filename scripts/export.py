"""Copy the best V, M and C of an experiment, weights only, into a logdir to give away.

python scripts/export.py --logdir experiment --to given_away

With them goes each stage's `config.json`, which says how it was made, and where dreams begin.
"""

import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from models.logdir import SCRIPTS, load_controller, load_vae, stage_weights, weights_digest
from models.starts import Starts
from utils.checkpoint import load_checkpoint, save_checkpoint
from utils.cli import UserError, add_logdir, run_script, script_parser

# What is left of a checkpoint: no state of optimizer or scheduler. `about` is of earlier versions.
KEPT = (
    *("epoch", "precision", "reward", "state_dict", "driving", "conditions", "episodes", "heads"),
    "about",
)
STARTS = 128  # of dreams, of some 6 kB each


def main() -> None:
    parser = script_parser("Copy the best V, M and C of an experiment, weights only.")
    add_logdir(parser)
    parser.add_argument("--to", type=Path, required=True, help="folder to write")
    parser.add_argument(
        "--stages",
        nargs="+",
        choices=list(SCRIPTS),
        default=list(SCRIPTS),
        help="what to copy; V and M alone go on in another logdir",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace what is there")
    args = parser.parse_args()
    stages = list(args.stages)
    if "ctrl" in stages and "mdrnn" in stages:
        best = stage_weights(args.logdir, "ctrl")
        if load_controller(best)[1].memory != "trained":
            stages.remove("mdrnn")  # it drives without
    there = [args.to / stage / "best.tar" for stage in args.stages]
    there = [path for path in there if path.exists()]
    if there and not args.overwrite:
        raise UserError(f"{there[0]} is there; name another folder with --to, or use --overwrite")
    states = {  # all of them, or none is written
        stage: load_checkpoint(stage_weights(args.logdir, stage)) for stage in stages
    }
    for stage, state in states.items():
        path = args.to / stage / "best.tar"
        save_checkpoint(path, {key: state[key] for key in KEPT if key in state})
        print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")
        config = args.logdir / stage / "config.json"
        if config.exists():
            shutil.copy(config, path.parent)
    if "rewards" in states.get("mdrnn", {}).get("heads", ""):
        path = args.to / "mdrnn" / "starts.npz"
        encoder = weights_digest(load_vae(args.logdir).encoder)
        Starts(args.logdir, encoder).write(path, STARTS)
        print(f"{path}: {STARTS} places where a dream begins, {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    run_script(main)
