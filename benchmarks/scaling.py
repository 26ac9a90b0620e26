"""How long a generation takes on a cluster that is not here: measured parts, simulated together.

    python -m benchmarks.scaling --plot docs/scaling.png

Measured are the lengths of the shipped controller's rollouts, a worker's steps a second by the
number of cars, CMA-ES, and what the driver gets through Ray (or without it through pipes).
"""

import heapq
import json
import time
from argparse import Namespace
from collections import deque
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from benchmarks.growth import environments_rate
from envs.parallel import UNIT, cluster_pool, run_rollouts, start_workers
from envs.tracks import track_seeds
from models.controller import PARAMETERS
from models.logdir import agent_digest, load_controller
from utils.cli import UserError, picture_path, run_script, script_parser
from utils.evolution import Evolution
from utils.workers import WorkerPool

PRETRAINED = Path(__file__).resolve().parent.parent / "pretrained"
WORKERS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000, 2000, 4000, 10_000)
POPULATIONS = {(32, 3): "this project's", (64, 16): "the paper's", (1024, 16): "", (8192, 16): ""}
TABLE = (1, 16, 64, 256, 1000, 10_000)
PAPER_STEPS = 1.7e9


class Measured(NamedTuple):
    """What a generation consists of, in steps and seconds of this machine."""

    lengths: list[int]  # of rollouts, in steps
    rates: dict[int, float]  # cars of a worker -> its steps a second
    search: dict[int, float]  # population -> seconds of CMA-ES's ask and tell
    send: float  # seconds of the driver for a unit of one rollout, and its result
    through: str  # what carries them


def measure_lengths(n: int) -> list[int]:
    """Of n rollouts of candidates like those late in a training, whole episodes."""
    controller, driving, _ = load_controller(PRETRAINED / "ctrl" / "best.tar")
    noise = 0.02 * np.random.default_rng(0).standard_normal((n // 4, PARAMETERS))
    candidates = controller.flat_parameters().numpy() + noise
    seeds, models = track_seeds("train", 4, 0), agent_digest(PRETRAINED, driving)
    with start_workers(PRETRAINED, torch.device("cpu"), None, n, models, driving) as pool:
        return run_rollouts(pool, candidates, seeds)[1].ravel().tolist()


def measure_search(population: int) -> float:
    """Seconds of a generation's ask and tell; the second one, for the first one sets up."""
    evolution = Evolution(np.zeros(PARAMETERS), 0.1, population, 0)
    for generation in (1, 2):
        start = time.perf_counter()
        evolution.ask(generation)
        evolution.tell(np.random.default_rng(generation).standard_normal(population))
        seconds = time.perf_counter() - start
    return seconds


def setup_nothing(index: int):
    return lambda unit, report: (np.zeros(1), np.zeros(1, np.int64))


def measure_send(folder: Path, address: str | None) -> tuple[float, str]:
    """Seconds for a unit of one controller's parameters, and its result, with nothing to do."""
    if address is None:
        pool, through = WorkerPool(8, setup_nothing, (), folder), "pipes"
    else:
        pool, through = cluster_pool(address)(None, setup_nothing, (), folder), "Ray"
    units = [np.zeros((1, PARAMETERS), np.float32)] * 2000
    with pool:
        list(pool.run(units[:100]))
        start = time.perf_counter()
        list(pool.run(units))
        return (time.perf_counter() - start) / len(units), through


def lockstep(lengths: np.ndarray, rates: dict[int, float]) -> float:
    """Seconds in which a worker drives rollouts of these lengths together."""
    cars = np.arange(len(lengths), 0, -1)
    steps = np.diff(np.sort(lengths), prepend=0) * cars
    return float((steps / np.interp(cars, list(rates), list(rates.values()))).sum())


def generation_seconds(
    measured: Measured, population: int, samples: int, workers: int, seed: int = 0
) -> float:
    """Seconds of one generation: as `run_rollouts` shares it out, with one driver.

    The driver does one thing at a time: it sends units while workers are free, else it takes a
    result, each for half of `send`.
    """
    generator = np.random.default_rng(seed)
    rollouts = population * samples
    used = min(workers, rollouts)
    units = min(rollouts, used * -(-rollouts // (used * UNIT)))
    lengths = generator.choice(measured.lengths, rollouts)
    shares = deque(lengths[first::units] for first in range(units))
    now, free, ends = 0.0, used, []
    while shares or ends:
        if shares and free:
            free -= 1
            now += measured.send / 2
            heapq.heappush(ends, now + lockstep(shares.popleft(), measured.rates))
        else:
            free += 1
            now = max(now, heapq.heappop(ends)) + measured.send / 2
    sizes = list(measured.search)
    search = np.interp(population, sizes, list(measured.search.values()))
    return now + float(search) * max(1, population / sizes[-1])


def steps_of(measured: Measured, population: int, samples: int) -> float:
    return population * samples * float(np.mean(measured.lengths))


def tables(measured: Measured) -> str:
    """Markdown: seconds of a generation, how busy that keeps the workers, the paper's days."""
    lines = ["| candidates x rollouts | " + " | ".join(f"{w:,}" for w in TABLE) + " workers |"]
    lines.append("| --- |" + " --- |" * len(TABLE))
    for population, samples in POPULATIONS:
        alone, cells = None, []
        for workers in TABLE:
            seconds = generation_seconds(measured, population, samples, workers)
            alone = alone or seconds
            shown = f"{seconds:,.0f}" if seconds >= 100 else f"{seconds:.3g}"
            cells.append(f"{shown} s ({alone / seconds / workers:.0%})")
        lines.append(f"| {population:,} x {samples} | " + " | ".join(cells) + " |")
    lines += ["", "| cores | the paper's 1.7 billion steps |", "| --- | --- |"]
    generations = PAPER_STEPS / steps_of(measured, 64, 16)
    for workers in (1, 16, 64, 1000):
        seconds = generations * generation_seconds(measured, 64, 16, workers)
        shown = f"{seconds / 86400:.3g} days" if seconds > 86400 else f"{seconds / 3600:.3g} hours"
        lines.append(f"| {workers:,} | {shown} |")
    lines.append("")
    lines.append(f"driver: {1 / measured.send:,.0f} units a second through {measured.through}")
    lines.append(
        f"rollouts: {np.mean(measured.lengths):.0f} steps, {len(measured.lengths)} of them"
    )
    lines.append(
        "a worker's steps/s by cars: " + str({k: round(v) for k, v in measured.rates.items()})
    )
    lines.append("CMA-ES, seconds: " + str({k: round(v, 3) for k, v in measured.search.items()}))
    return "\n".join(lines)


def draw(measured: Measured, path: Path) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.2))
    for (population, samples), name in POPULATIONS.items():
        seconds = [generation_seconds(measured, population, samples, w) for w in WORKERS]
        speed = [steps_of(measured, population, samples) / s for s in seconds]
        label = f"{population:,} x {samples}" + (f" ({name})" if name else "")
        axes.plot(WORKERS, speed, marker="o", markersize=3, label=label)
    ideal = [w * max(measured.rates.values()) for w in WORKERS]
    axes.plot(WORKERS, ideal, color="gray", linestyle=":", label="all workers busy")
    axes.set(xscale="log", yscale="log", xlabel="workers, a core each", ylabel="steps a second")
    axes.legend(title="candidates x rollouts")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def parse_arguments() -> Namespace:
    parser = script_parser("Simulate generations on clusters of up to 10,000 workers.")
    parser.add_argument("--plot", type=picture_path, help="draw steps a second to this picture")
    parser.add_argument("--measured", type=Path, help="measure into this file, or take it")
    parser.add_argument(
        "--ray-address", metavar="ADDRESS", help="measure the driver through Ray: local, auto"
    )
    return parser.parse_args()


def main() -> None:
    import tempfile

    args = parse_arguments()
    if args.measured is not None and args.measured.exists():
        try:
            stored = json.loads(args.measured.read_text())
            for name in ("rates", "search"):
                stored[name] = {int(k): v for k, v in stored[name].items()}
            measured = Measured(**stored)
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UserError(f"{args.measured} is damaged; remove it") from None
    else:
        torch.set_num_threads(1)
        with tempfile.TemporaryDirectory() as folder:
            measured = Measured(
                measure_lengths(64),
                {n: environments_rate(n) for n in (1, 2, 4, 8, 16, 32, 64)},
                {n: measure_search(n) for n in (32, 256, 1024, 4096)},
                *measure_send(Path(folder), args.ray_address),
            )
        if args.measured is not None:
            args.measured.write_text(json.dumps(measured._asdict(), indent=1) + "\n")
    print(tables(measured))
    if args.plot is not None:
        draw(measured, args.plot)


if __name__ == "__main__":
    run_script(main)
