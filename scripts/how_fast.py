"""Draw the returns of whole runs of scripts/reproduce.sh by the minutes since their beginning.

    python scripts/how_fast.py --logdir first second third --to docs/how_fast.png

Only runs that were never stopped tell it. Needs matplotlib (requirements-dev.txt).
"""

import struct
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils.cli import UserError, picture_path, run_script, script_parser

MINUTES = (5, 10, 20, 40, 60)
# Curves of a controller's training: of all candidates, and of their mean on tracks of its own.
POPULATION, MEAN = "return/mean", ("return/of_the_mean", "evaluation/mean")


def read_curves(folder: Path) -> dict[str, list[tuple[float, float]]]:
    """The points (wall time, value) of each curve in TensorBoard's files of a folder."""
    from tensorboardX.proto.event_pb2 import Event

    curves: dict[str, list[tuple[float, float]]] = {}
    for path in sorted(folder.glob("events*")):
        data, position = path.read_bytes(), 0
        while position + 16 <= len(data):  # length, its checksum, event, its checksum
            (length,) = struct.unpack_from("<Q", data, position)
            event, position = data[position + 12 : position + 12 + length], position + length + 16
            if position > len(data):  # half a record, of a training that was killed
                break
            event = Event.FromString(event)
            for value in event.summary.value:
                curves.setdefault(value.tag, []).append((event.wall_time, value.simple_value))
    return curves


def returns_by_minutes(logdir: Path) -> tuple[np.ndarray, np.ndarray]:
    """Minutes since the beginning and returns (points, 2), of the candidates and of their mean."""
    begun = logdir / "begun"
    if not begun.exists():
        raise UserError(f"{begun} is missing: {logdir} is no run of scripts/reproduce.sh")
    points = {}
    for stage in ("round_1/ctrl", "ctrl"):
        for name, curve in read_curves(logdir / stage / "tensorboard").items():
            if name not in (POPULATION, *MEAN):
                continue
            kind = "population" if name == POPULATION else "mean"
            gap = (curve[-1][0] + 1e-3, np.nan)  # no line from one stage to the next
            points.setdefault(kind, []).extend([*curve, gap])
    if not {"population", "mean"} <= points.keys():
        raise UserError(f"{logdir} has no curves of a controller's training")
    population, mean = (np.array(sorted(points[kind])) for kind in ("population", "mean"))
    for curve in (population, mean):
        curve[:, 0] = (curve[:, 0] - begun.stat().st_mtime) / 60
    return population, mean


def latest(curve: np.ndarray, minute: float) -> str:
    """The last value (of points (n, 2)) up to a minute."""
    known = curve[(curve[:, 0] <= minute) & ~np.isnan(curve[:, 1]), 1]
    return f"{known[-1]:.0f}" if len(known) else "-"


def main() -> None:
    parser = script_parser("Draw returns by the minutes since a run of scripts/reproduce.sh began.")
    parser.add_argument("--logdir", type=Path, nargs="+", required=True, help="runs, one each seed")
    parser.add_argument("--to", type=picture_path, default="how_fast.png", help="picture")
    args = parser.parse_args()
    runs = [returns_by_minutes(logdir) for logdir in args.logdir]

    try:
        import matplotlib
    except ImportError:
        raise UserError("matplotlib is missing; pip install -r requirements-dev.txt") from None
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(8, 4), layout="constrained")
    for i, (logdir, (population, mean)) in enumerate(zip(args.logdir, runs, strict=True)):
        axis.plot(*population.T, color=f"C{i}", linewidth=0.7, alpha=0.6)
        axis.plot(*mean.T, "o", markersize=3, color=f"C{i}", label=logdir.name)
        after = ", ".join(f"{minute} min {latest(mean, minute)}" for minute in MINUTES)
        candidates = ", ".join(latest(population, minute) for minute in MINUTES)
        print(f"{logdir}: {after} (the candidates' mean: {candidates})")
    axis.axhline(900, color="black", linewidth=0.5, linestyle="--")
    axis.set(xlabel="minutes from nothing on 2 cores, V and M included", ylabel="return", xlim=0)
    axis.legend(title="mean of the distribution; lines: of its candidates")
    args.to.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.to, dpi=100)
    print(args.to)


if __name__ == "__main__":
    run_script(main)
