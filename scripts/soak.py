"""Soak test: train a controller while a random worker is killed again and again.

    python scripts/soak.py --logdir exp_dir --minutes 15

Needs V and M in the logdir, and psutil (requirements-dev.txt). Trains in a temporary logdir
with kills, then as many generations in another one without. Prints the memory (RSS) of the
parent and of its workers at each kill; exits with 1 when the two trainings differ.
"""

import importlib.util
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from pathlib import Path

import torch

if importlib.util.find_spec("psutil") is None:
    print("soak.py: error: psutil is missing; pip install -r requirements-dev.txt", file=sys.stderr)
    sys.exit(2)
import psutil

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from models.logdir import stage_weights
from utils.checkpoint import load_checkpoint
from utils.cli import add_logdir, add_seed, positive_float, run_script, script_parser

# Units of work of 6 and 8 rollouts, short enough to be finished between two kills.
TRAINING = ["--pop-size", "16", "--n-samples", "1", "--patience", "100", "--device", "cpu"]
TRAINING += ["--eval-every", "10", "--eval-rollouts", "4", "--max-workers", "2"]
MIB = 2**20


def parse_arguments() -> Namespace:
    parser = script_parser("Train a controller while random workers are killed.")
    add_logdir(parser)
    parser.add_argument("--minutes", type=positive_float, default=15, help="time with kills")
    parser.add_argument("--every", type=positive_float, default=20, help="seconds between kills")
    add_seed(parser, "the training and the choice of the victims")
    return parser.parse_args()


def start(logdir: Path, seed: int, *more: str) -> subprocess.Popen:
    """A controller training in `logdir`; what it prints goes to `logdir/output.txt`."""
    command = [sys.executable, str(ROOT / "traincontroller.py"), "--logdir", str(logdir)]
    with open(logdir / "output.txt", "w") as output:
        return subprocess.Popen(
            [*command, *TRAINING, "--seed", str(seed), *more], stdout=output, stderr=output
        )


def workers_of(process: psutil.Process) -> list[psutil.Process]:
    """The worker processes of a training."""
    return [p for p in process.children() if "spawn_main" in " ".join(p.cmdline())]


def disturb(training: subprocess.Popen, args: Namespace) -> list[tuple[float, float]]:
    """Kill a random worker every so often; RSS in MiB of the parent and of the largest worker."""
    generator = random.Random(args.seed)
    parent = psutil.Process(training.pid)
    memory = []
    begin = time.monotonic()
    while time.monotonic() - begin < args.minutes * 60:
        time.sleep(args.every)
        if training.poll() is not None:
            return memory
        try:
            workers = workers_of(parent)
            rss = [p.memory_info().rss / MIB for p in workers]
        except psutil.NoSuchProcess:
            continue  # one of them ended in between
        if not workers:
            continue  # they are not there yet
        memory.append((parent.memory_info().rss / MIB, max(rss)))
        generator.choice(workers).kill()
        minutes = (time.monotonic() - begin) / 60
        print(
            f"{minutes:5.1f} min, kill {len(memory)}: parent {memory[-1][0]:.0f} MiB, "
            f"largest worker {memory[-1][1]:.0f} MiB",
            flush=True,
        )
    return memory


def history(logdir: Path) -> list[str]:
    """What was printed of each generation and evaluation, without the times."""
    lines = (logdir / "output.txt").read_text().splitlines()
    lines = [line for line in lines if re.match(r"(generation|evaluation after) ", line)]
    return [re.sub(r", \d+ steps/s, \d+ s$", "", line) for line in lines]


def main() -> None:
    args = parse_arguments()
    with tempfile.TemporaryDirectory() as folder:
        logdirs = Path(folder, "disturbed"), Path(folder, "quiet")
        for logdir in logdirs:
            for stage in ("vae", "mdrnn"):
                weights = stage_weights(args.logdir, stage)
                (logdir / stage).mkdir(parents=True)
                shutil.copy(weights, logdir / stage)
        disturbed, quiet = logdirs

        training = start(disturbed, args.seed)
        try:
            memory = disturb(training, args)
            died = training.poll()
        finally:
            training.kill()
            training.wait()
        if died is not None or not memory:
            sys.exit(f"the training ended by itself:\n{(disturbed / 'output.txt').read_text()}")
        generation = load_checkpoint(disturbed / "ctrl/checkpoint.tar")["state"]["generation"]
        print(f"{len(memory)} kills in {generation} generations; the same again without kills")

        start(quiet, args.seed, "--max-generations", str(generation)).wait()
        with_kills = [line for line in history(disturbed) if number(line) <= generation]
        without = history(quiet)[: len(with_kills)]
        # The distribution, too, and not only what is printed of it.
        means = [load_checkpoint(d / "ctrl/checkpoint.tar")["cma"]["es"]["mean"] for d in logdirs]
        same = with_kills == without and torch.equal(*means)
        for name, first, last in zip(("parent", "worker"), memory[0], memory[-1], strict=True):
            print(f"RSS of the {name}: first {first:.0f} MiB, last {last:.0f} MiB")
        print(f"{len(with_kills)} lines of history, {'equal' if same else 'NOT EQUAL'}")
        if not same:
            sys.exit(1)


def number(line: str) -> int:
    """The generation that a line of the history is about."""
    return int(re.search(r"generation (\d+)", line)[1])


if __name__ == "__main__":
    run_script(main)
