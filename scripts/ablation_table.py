"""Keep the scores of the controllers of scripts/ablations.sh, and print them as a table.

python scripts/ablation_table.py --logdir experiment
python scripts/ablation_table.py --logdir experiment --results docs/ablations.json

Scores that are in the results file already are kept, so runs of several machines come together.
"""

import json
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils.checkpoint import load_checkpoint
from utils.cli import UserError, add_logdir, run_script, script_parser
from utils.files import atomic_write
from utils.scores import read_returns

# Over 100 tracks of theirs: Ha and Schmidhuber 2018, table 1; and the best-known PyTorch
# reimplementation of it.
FULL_MODEL, RANDOM_M, NO_M = "906 +- 21; 860 +- 120", "-; 870 +- 120", "632 +- 251; -"
PUBLISHED = {
    "base": FULL_MODEL,
    "untrained_mdrnn": RANDOM_M,
    "no_mdrnn": NO_M,
    "full_covariance": FULL_MODEL,
    "full_covariance_untrained_mdrnn": RANDOM_M,
    "full_covariance_no_mdrnn": NO_M,
}


def read_results(path: Path) -> dict[str, dict]:
    """What an earlier call kept, as `read_runs` returns it; raises UserError for another file."""
    if not path.exists():
        return {}
    try:
        results = json.loads(path.read_text())
        for run in results.values():
            int(run["steps"]), int(run["generations"]), str(run["tracks"])
            float(np.mean(run["returns"]))
    except (ValueError, AttributeError, KeyError, TypeError):
        raise UserError(f"--results {path} is not a file of this script; name another") from None
    return results


def read_runs(logdir: Path) -> dict[str, dict]:
    """The finished runs in a logdir, by choice and seed: steps, generations, returns (100,)."""
    runs = {}
    for test in sorted(logdir.glob("ablations/*-*/test.txt")):
        returns, tracks = read_returns(test)
        state = load_checkpoint(test.parent / "ctrl" / "checkpoint.tar")["state"]
        runs[test.parent.name] = {
            "steps": state["steps"],
            "generations": state["generation"],
            "tracks": tracks,
            "returns": [returns[number] for number in sorted(returns)],
        }
    return runs


def print_table(results: dict[str, dict]) -> None:
    """One row for each choice, with all its seeds."""
    choices: dict[str, list[dict]] = {}
    for name in sorted(results):
        choices.setdefault(name.rpartition("-")[0], []).append(results[name])
    means = {name: [np.mean(run["returns"]) for run in runs] for name, runs in choices.items()}
    print("| choice | steps | generations | return on the test tracks by seed | mean | published |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name in sorted(choices, key=lambda name: -np.mean(means[name])):
        runs = choices[name]
        line = [
            name.replace("_", " "),
            ", ".join(f"{run['steps'] / 1e6:.2f} M" for run in runs),
            ", ".join(str(run["generations"]) for run in runs),
            ", ".join(f"{np.mean(r['returns']):.1f} +- {np.std(r['returns']):.1f}" for r in runs),
            f"{np.mean(means[name]):.1f}",
            PUBLISHED.get(name, ""),
        ]
        print(f"| {' | '.join(line)} |")
    # The same choice with another seed: what a difference between two choices must exceed.
    several = [np.var(values, ddof=1) for values in means.values() if len(values) > 1]
    if several:
        print(
            f"\nbetween seeds of one choice: standard deviation {np.sqrt(np.mean(several)):.1f} "
            f"(over {len(several)} choices)"
        )


def main() -> None:
    parser = script_parser("Keep the scores of the ablations, and print them as a table.")
    add_logdir(parser)
    parser.add_argument(
        "--results",
        type=Path,
        help="json file to which the scores are added (default: LOGDIR/ablations/results.json)",
    )
    args = parser.parse_args()
    path = args.results or args.logdir / "ablations" / "results.json"
    results = read_results(path) | read_runs(args.logdir)
    if not results:
        raise UserError(f"{args.logdir} has no ablations; run bash scripts/ablations.sh first")
    tracks = {(run["tracks"], len(run["returns"])) for run in results.values()}
    if len(tracks) > 1:
        raise UserError(f"{path} and {args.logdir} hold scores on different tracks: {tracks}")
    lines = [f"{json.dumps(name)}: {json.dumps(results[name])}" for name in sorted(results)]
    with atomic_write(path) as file:  # one line for each run
        file.write(("{\n" + ",\n".join(lines) + "\n}\n").encode())
    print_table(results)


if __name__ == "__main__":
    run_script(main)
