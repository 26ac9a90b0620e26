"""Print what came of each controller of scripts/ablations.sh, as a table.

python scripts/ablation_table.py --logdir experiment
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils.checkpoint import load_checkpoint
from utils.cli import UserError, add_logdir, run_script, script_parser


def main() -> None:
    parser = script_parser("Print the table of the ablations.")
    add_logdir(parser)
    args = parser.parse_args()
    paths = sorted(args.logdir.glob("ablations/*-*/ctrl/checkpoint.tar"))
    if not paths:
        raise UserError(
            f"{args.logdir / 'ablations'} is empty; run bash scripts/ablations.sh first"
        )
    print("| choice | seed | steps | generations | mean | running average | best candidate |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for path in paths:
        name, _, seed = path.parts[-3].rpartition("-")
        state = load_checkpoint(path)["state"]
        generation, steps = state["generation"], state["steps"]
        evaluated = state["evaluations"][-1:] or [[0]]
        if evaluated[0][0] != generation:  # it has not come to its end
            scores = ["not finished"] * 3
        else:
            scores = [f"{score:.0f}" for score in evaluated[0][3:]]
        line = [name.replace("_", " "), seed, f"{steps:,}", str(generation), *scores]
        print(f"| {' | '.join(line)} |")


if __name__ == "__main__":
    run_script(main)
