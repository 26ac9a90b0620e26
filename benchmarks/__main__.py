"""python -m benchmarks: measure the stages and print a table."""

import os

os.environ["TQDM_DISABLE"] = "1"  # before anything imports tqdm, here and in child processes

import contextlib
import importlib
import importlib.util
import json
import platform
import sys
from pathlib import Path

import torch

from benchmarks.measure import Row
from utils.cli import UserError, picture_path, positive_int, run_script, script_parser
from utils.files import atomic_write

STAGES = (
    "environments",
    "generation",
    "vae",
    "latents",
    "mdrnn",
    "controller",
    "dream",
    "player",
    "startup",
    "memory",
    "growth",
    "precision",
)


def machine() -> dict[str, str]:
    """What the figures depend on: processor, cores, threads and versions."""
    from importlib.metadata import PackageNotFoundError, version

    from utils.cores import available_cores
    from utils.devices import choose_device, describe, fast_precision

    device = choose_device("auto")
    packages = {}
    for name in ("torch", "gymnasium", "numba", "envpool", "numpy", "cma"):
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = "not installed"
    return {
        "processor": torch.cpu.get_capabilities().get("cpu_name", platform.processor()),
        "cores": str(available_cores()),
        "device": describe(device, fast_precision(device)).removeprefix("device: "),
        "python": platform.python_version(),
        **packages,
    }


def line(row: Row) -> str:
    def number(value: float) -> str:
        return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"

    return (
        f"| {row.stage} | {number(row.ours)} {row.unit} | {row.against} | {number(row.other)} "
        f"| {row.ratio:.2f} | {row.target} |"
    )


def plot(rows: list[Row], path: Path) -> None:
    """The growth rows as three small plots."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(11, 3.2), layout="constrained")
    for axis, word in zip(axes, ("workers", "environments a worker", "episodes"), strict=True):
        chosen = [r for r in rows if r.stage.endswith(word) and r.unit != "MiB"]
        x = [int(r.stage.split(", ")[1].split()[0]) for r in chosen]
        axis.plot(x, [r.ours for r in chosen], marker="o")
        top = 1.1 * max(r.ours for r in chosen)
        axis.set(xlabel=word, ylabel=chosen[0].unit, ylim=(0, top), xticks=x)
        axis.set_title("VAE epoch" if word == "episodes" else "controller evaluation")
        if word == "environments a worker":
            axis.set_xscale("log", base=2)
            axis.set_xticks(x, labels=map(str, x))
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = script_parser("Measure speed and memory of each stage; takes half an hour to an hour.")
    parser.add_argument(
        "--only", nargs="+", choices=STAGES, default=STAGES, help="the stages to measure"
    )
    parser.add_argument(
        "--repeats",
        type=positive_int,
        default=3,
        help="how often each rate is measured, for the median; what is short, two times more",
    )
    parser.add_argument("--json", type=Path, default=None, help="write the table to this file")
    parser.add_argument(
        "--plot", type=picture_path, default=None, help="draw the growth rows to this picture"
    )
    args = parser.parse_args()
    if args.plot and "growth" not in args.only:
        raise UserError("--plot draws the stage growth; add it to --only")
    if args.plot:
        args.plot.parent.mkdir(parents=True, exist_ok=True)
    for name in ("psutil", "matplotlib"):
        if importlib.util.find_spec(name) is None:
            raise UserError(f"{name} is missing; pip install -r requirements-dev.txt")
    facts = machine() | {"repeats": str(args.repeats)}
    print(", ".join(f"{name} {value}" for name, value in facts.items()))
    print("| stage | ours | measured against | of that | ratio | target |")
    print("| --- | --- | --- | --- | --- | --- |", flush=True)
    rows: list[Row] = []
    for name in args.only:
        print(f"measuring {name} ...", file=sys.stderr, flush=True)
        with contextlib.redirect_stdout(sys.stderr):  # what the stages say is not the table
            measured = importlib.import_module(f"benchmarks.{name}").measure(args.repeats)
        for row in measured:
            print(line(row), flush=True)
        rows += measured
        if args.json:  # after each stage, so that a failure loses no row
            with atomic_write(args.json) as file:
                content = {"machine": facts, "rows": [row._asdict() for row in rows]}
                file.write(json.dumps(content, indent=2).encode())
    if args.plot:
        plot(rows, args.plot)


if __name__ == "__main__":
    run_script(main)
