"""Print the scores of scripts/temperatures.sh as a table.

python scripts/temperature_table.py --logdir dream_loop/round_4
"""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils.cli import UserError, add_logdir, run_script, script_parser
from utils.scores import read_scores

COLUMNS = ("best_dream", "best_real", "last_dream", "last_real")


def main() -> None:
    parser = script_parser("Print the scores of controllers that were trained in dreams.")
    add_logdir(parser)
    args = parser.parse_args()
    runs: dict[float, list[Path]] = {}
    for run in sorted(args.logdir.glob("temperatures/*-*")):
        if all((run / f"{name}.json").exists() for name in COLUMNS):
            runs.setdefault(float(run.name.rpartition("-")[0]), []).append(run)
    if not runs:
        raise UserError(f"{args.logdir} has no scores; run bash scripts/temperatures.sh first")
    print(f"| temperature | {' | '.join(name.replace('_', ', ') for name in COLUMNS)} |")
    print("| --- |" + " --- |" * len(COLUMNS))
    for temperature, folders in sorted(runs.items()):
        cells = []
        for name in COLUMNS:  # the runs of the seeds, in their order
            returns = [np.array(read_scores(f / f"{name}.json").returns) for f in folders]
            cells.append(", ".join(f"{r.mean():.0f} +- {r.std():.0f}" for r in returns))
        print(f"| {temperature:g} | {' | '.join(cells)} |")


if __name__ == "__main__":
    run_script(main)
