"""Keep the scores of the controllers of scripts/ablations.sh, and print them as a table.

python scripts/ablation_table.py --logdir experiment
python scripts/ablation_table.py --logdir experiment --results results.json

Scores that are in the results file already are kept, so runs of several machines come together; of
two runs of one choice and seed the longer one counts. A file holds runs with the same V and M.
"""

import json
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from models.logdir import agent_digest
from utils.checkpoint import load_checkpoint
from utils.cli import UserError, add_logdir, run_script, script_parser
from utils.files import atomic_write
from utils.scores import read_scores

# Over 100 tracks of theirs: Ha and Schmidhuber 2018, table 1; and the best-known PyTorch
# reimplementation of it.
FULL_MODEL, RANDOM_M, NO_M = "906 +- 21; 860 +- 120", "-; 870 +- 120", "632 +- 251; -"
PUBLISHED = {
    "base": FULL_MODEL,
    "random_m": RANDOM_M,
    "no_m": NO_M,
}

# Choices that differ from the base in V and M.
OTHER_MODELS = ("models_of_round_1",)


def read_results(path: Path) -> dict[str, dict]:
    """What an earlier call kept, as `read_runs` returns it; raises UserError for another file."""
    if not path.exists():
        return {}
    try:
        results = json.loads(path.read_text())
        for run in results.values():
            int(run["steps"]), int(run["generations"]), str(run["tracks"]), str(run["models"])
            float(np.mean(run["returns"]))
    except (ValueError, AttributeError, KeyError, TypeError):
        raise UserError(f"--results {path} is not a file of this script; name another") from None
    return results


def read_runs(logdir: Path) -> dict[str, dict]:
    """The finished runs in a logdir, by choice and seed: steps, generations, returns (100,).

    `models` is the fingerprint of V and M. Left out is a run that went on after it was scored: its
    returns are not those of so many steps.
    """
    runs = {}
    for test in sorted(logdir.glob("ablations/*-*/test.json")):
        scores = read_scores(test)
        checkpoint = test.parent / "ctrl" / "checkpoint.tar"
        state = load_checkpoint(checkpoint)["state"]
        if checkpoint.stat().st_mtime > test.stat().st_mtime:
            print(
                f"{test} is older than {checkpoint}: left out until it is scored", file=sys.stderr
            )
            continue
        runs[test.parent.name] = {
            "steps": state["steps"],
            "generations": state["generation"],
            "models": agent_digest(test.parent),
            "tracks": f"seed {scores.seed}",
            "returns": scores.returns,
        }
    return runs


def merge(kept: dict[str, dict], new: dict[str, dict]) -> dict[str, dict]:
    """Both, and of two runs of the same name the longer one.

    Raises UserError where they cannot be compared: other tracks, or another V and M.
    """
    both = [*kept.items(), *new.items()]
    tracks = {(run["tracks"], len(run["returns"])) for _, run in both}
    if len(tracks) > 1:
        raise UserError(f"scores on different tracks, {tracks}; name another file with --results")
    models = {run["models"] for name, run in both if not name.startswith(OTHER_MODELS)}
    if len(models) > 1:
        raise UserError(
            f"runs with different V and M, {sorted(models)}; name another file with --results"
        )
    longer = {n: run for n, run in new.items() if run["steps"] > kept.get(n, {"steps": 0})["steps"]}
    return kept | longer


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
    results = merge(read_results(path), read_runs(args.logdir))
    if not results:
        raise UserError(f"{args.logdir} has no ablations; run bash scripts/ablations.sh first")
    lines = [f"{json.dumps(name)}: {json.dumps(results[name])}" for name in sorted(results)]
    with atomic_write(path) as file:  # one line for each run, with its steps first (ablations.sh)
        file.write(("{\n" + ",\n".join(lines) + "\n}\n").encode())
    print_table(results)


if __name__ == "__main__":
    run_script(main)
