"""Draw the learning curve of a controller training beside the paper's published one.

    python scripts/learning_curve.py --logdir experiment --to docs/learning_curve.png

Needs matplotlib (requirements-dev.txt).
"""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils import paper
from utils.checkpoint import load_checkpoint
from utils.cli import UserError, add_logdir, picture_path, run_script, script_parser


def main() -> None:
    parser = script_parser("Draw the learning curve of a controller beside the paper's.")
    add_logdir(parser)
    parser.add_argument("--to", type=picture_path, default="learning_curve.png", help="picture")
    args = parser.parse_args()
    path = args.logdir / "ctrl" / "checkpoint.tar"
    state = load_checkpoint(path).get("state", {})
    if not state.get("history"):
        raise UserError(f"{path} has no history of generations; train the controller first")
    history, evaluations = np.array(state["history"]), np.array(state["evaluations"])

    try:
        import matplotlib
    except ImportError:
        raise UserError("matplotlib is missing; pip install -r requirements-dev.txt") from None
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 4), sharey=True, layout="constrained")
    for axis, column, unit, scale, of_paper in (
        (axes[0], 1, "environment steps", 1, paper.STEPS),
        (
            axes[1],
            2,
            "hours of training rollouts (ours: 2 cores; the paper's: 64)",
            1 / 3600,
            paper.HOURS,
        ),
    ):
        x = paper.CURVE[:, 0] * of_paper
        axis.plot(x, paper.CURVE[:, 1], "o-", color="gray", label="paper, population mean")
        axis.plot(history[:, column] * scale, history[:, 3], color="C0", label="population mean")
        if len(evaluations):
            x = evaluations[:, column] * scale
            axis.plot(x, evaluations[:, 3], "s-", color="C1", label="mean of the distribution")
            axis.plot(x, evaluations[:, 4], "^-", color="C2", label="its running average")
        axis.axhline(900, color="black", linewidth=0.5, linestyle="--")
        axis.set(xscale="log", xlabel=unit)
    axes[0].set_ylabel("return")
    axes[0].legend()
    args.to.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.to, dpi=100)
    print(args.to)


if __name__ == "__main__":
    run_script(main)
