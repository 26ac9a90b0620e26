"""Compare two controllers on the same tracks, and say how many tracks that takes.

    python test_controller.py --logdir a --no-render --episodes 100 --json a.json
    python test_controller.py --logdir b --no-render --episodes 100 --json b.json
    python scripts/compare.py a.json b.json

The returns on one track differ less between two controllers than those on two tracks, so the
differences are taken track by track.
"""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils.cli import UserError, run_script, script_parser
from utils.scores import read_scores


def main() -> None:
    parser = script_parser("Compare two controllers by their scores.")
    parser.add_argument("first", type=Path, help="what test_controller.py --json wrote of one")
    parser.add_argument("second", type=Path, help="the same of the other")
    args = parser.parse_args()
    scores = [read_scores(path) for path in (args.first, args.second)]
    first, second = (dict(zip(s.tracks, s.returns, strict=True)) for s in scores)
    tracks = [track for track in first if track in second]
    if len(tracks) < 2:
        raise UserError(f"{args.first} and {args.second} need at least two tracks in common")
    a, b = (np.array([returns[track] for track in tracks]) for returns in (first, second))
    difference = b - a
    spread = difference.std(ddof=1)
    print(f"{args.first}: {a.mean():.1f} +- {a.std():.1f} over {len(tracks)} tracks")
    print(f"{args.second}: {b.mean():.1f} +- {b.std():.1f}")
    print(
        f"difference {difference.mean():.1f}, standard error {spread / np.sqrt(len(tracks)):.1f}; "
        f"track by track +- {spread:.1f}, correlation {np.corrcoef(a, b)[0, 1]:.2f}"
    )
    for apart in (10, 20, 50):
        needed = int(np.ceil((2 * spread / apart) ** 2))
        print(f"a difference of {apart} is two standard errors on {needed} tracks")


if __name__ == "__main__":
    run_script(main)
