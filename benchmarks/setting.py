"""What the stages work on: episodes played for the occasion, and V, M and C of random weights."""

import functools
import shutil
import tempfile
from pathlib import Path

import numpy as np
import torch

from data.playing import BATCH, setup_worker
from data.policies import brownian
from models.controller import Controller
from models.mdrnn import MDRNN
from models.starts import WARM_UP
from models.vae import VAE
from utils.checkpoint import save_checkpoint
from utils.cores import available_cores
from utils.workers import WorkerPool

CORES = available_cores()
EPISODES = max(2, CORES) * BATCH  # a unit for each process at least


@functools.cache
def folder() -> Path:
    """A temporary folder for the whole run; removed at its end."""
    holder = tempfile.TemporaryDirectory(prefix="benchmarks-")
    folder.holder = holder  # keeps it until the process ends
    return Path(holder.name)


@functools.cache
def dataset() -> Path:
    """EPISODES brownian episodes on disk."""
    rootdir = folder() / "data"
    with generators() as pool:
        list(pool.run(generation_units(rootdir)))
    return rootdir


def generators() -> WorkerPool:
    """A process for each core that plays brownian episodes of seed 0, without patience."""
    return WorkerPool(CORES, setup_worker, ("brown", 0, 0), folder() / "logs")


def generation_units(rootdir: Path) -> list[dict[int, Path]]:
    return [
        {k: rootdir / f"rollout_{k}.npz" for k in range(start, start + BATCH)}
        for start in range(0, EPISODES, BATCH)
    ]


@functools.cache
def experiment() -> Path:
    """A logdir with random weights: how fast they compute does not depend on what they know.

    Its M dreams, of random starts, and ends no dream.
    """
    logdir = folder() / "experiment"
    torch.manual_seed(0)
    models = {"vae": VAE(), "mdrnn": MDRNN(), "ctrl": Controller()}
    with torch.no_grad():
        models["mdrnn"].gmm_linear.bias[-1] = -20
    for stage, model in models.items():
        state = {"state_dict": model.state_dict()}
        if stage == "mdrnn":
            state["heads"] = "latents, terminals, rewards"
        save_checkpoint(logdir / stage / "best.tar", state)
    generator, lengths = np.random.default_rng(0), np.full(8, WARM_UP + 1)
    mu, actions = (
        generator.standard_normal((lengths.sum(), size)).astype(np.float32) for size in (32, 3)
    )
    np.savez(logdir / "mdrnn" / "starts.npz", lengths=lengths, mu=mu, actions=actions)
    return logdir


def plans(n: int, steps: int = 1000) -> np.ndarray:
    """Brownian actions (steps, n, 3)."""
    return np.stack([brownian(steps, np.random.default_rng([1, k])) for k in range(n)], axis=1)


@functools.cache
def many_episodes(count: int) -> Path:
    """A root with `count` episodes, which are copies of those of `dataset()`."""
    rootdir = folder() / f"copies-{count}"
    rootdir.mkdir(exist_ok=True)
    originals = sorted(dataset().rglob("*.npz"))
    for k in range(count):
        shutil.copyfile(originals[k % len(originals)], rootdir / f"rollout_{k}.npz")
    return rootdir
