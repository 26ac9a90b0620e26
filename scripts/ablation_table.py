"""Print what came of each controller of scripts/ablations.sh, as a table.

python scripts/ablation_table.py --logdir experiment
"""

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils.checkpoint import load_checkpoint
from utils.cli import UserError, add_logdir, run_script, script_parser

# Over 100 tracks of theirs: Ha and Schmidhuber 2018, table 1; and the best-known PyTorch
# reimplementation of it.
PUBLISHED = {
    "base": "906 +- 21; 860 +- 120",
    "untrained_mdrnn": "-; 870 +- 120",
    "no_mdrnn": "632 +- 251; -",
}


def main() -> None:
    parser = script_parser("Print the table of the ablations.")
    add_logdir(parser)
    args = parser.parse_args()
    runs = sorted(path.parents[1] for path in args.logdir.glob("ablations/*-*/ctrl/checkpoint.tar"))
    if not runs:
        raise UserError(f"{args.logdir} has no ablations; run bash scripts/ablations.sh first")
    print("| choice | seed | steps | generations | return over 100 test tracks | published |")
    print("| --- | --- | --- | --- | --- | --- |")
    for run in runs:
        name, _, seed = run.name.rpartition("-")
        state = load_checkpoint(run / "ctrl" / "checkpoint.tar")["state"]
        test = run / "test.txt"
        text = test.read_text() if test.exists() else ""
        score = re.search(r"^return (\S+ \+- \S+) ", text, re.MULTILINE)
        line = [
            name.replace("_", " "),
            seed,
            f"{state['steps']:,}",
            str(state["generation"]),
            score[1] if score else "not finished",
            PUBLISHED.get(name, ""),
        ]
        print(f"| {' | '.join(line)} |")


if __name__ == "__main__":
    run_script(main)
