"""Draw the learning curve of a controller training beside the paper's published one.

    python scripts/learning_curve.py --logdir experiment --to docs/learning_curve.png

Needs matplotlib (requirements-dev.txt).
"""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils.checkpoint import load_checkpoint
from utils.cli import UserError, add_logdir, picture_path, run_script, script_parser

# The paper's own published log: generation and the population's mean return. Its first 1800
# generations of 64 x 16 rollouts took 4.03 million seconds on 64 cores, some 1.7 billion steps.
PAPER = np.array(
    [
        *((1, -55), (6, 92), (11, 282), (21, 616), (51, 754), (101, 792)),
        *((201, 827), (501, 868), (1001, 882), (1800, 890)),
    ]
)
PAPER_STEPS = 1.7e9 / 1800  # of a generation
PAPER_HOURS = 4.03e6 / 3600 / 1800


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
        (axes[0], 1, "environment steps", 1, PAPER_STEPS),
        (
            axes[1],
            2,
            "hours of training rollouts (ours: 2 cores; the paper's: 64)",
            1 / 3600,
            PAPER_HOURS,
        ),
    ):
        x = PAPER[:, 0] * of_paper
        axis.plot(x, PAPER[:, 1], "o-", color="gray", label="paper, population mean")
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
