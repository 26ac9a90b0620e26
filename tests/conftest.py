"""What the tests share: small data sets and experiments, and ways to run the scripts."""

import multiprocessing
import multiprocessing.forkserver
import os
import runpy
import subprocess
import sys
import tempfile
import warnings
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pytest
import torch

from data.episodes import Episode, write_episode
from models.controller import Controller
from models.logdir import load_vae, weights_digest
from models.mdrnn import MDRNN
from models.vae import VAE
from utils.checkpoint import load_checkpoint, save_checkpoint

ROOT = Path(__file__).resolve().parent.parent
# Steps of an episode in the processes that are forked, see preloaded.py: enough to leave the field,
# as the controller of `make_experiment` does.
SHORT = 150


def make_episode(steps: int, seed: int = 0, size: int = 64) -> Episode:
    """An episode of smooth random frames, with a random walk of actions."""
    generator = np.random.default_rng(seed)
    base = generator.integers(0, 256, (1, size, size, 3), dtype=np.uint8)
    frames = base + np.arange(steps, dtype=np.uint8)[:, None, None, None]
    terminals = np.zeros(steps, bool)
    terminals[-1] = True
    return Episode(
        frames,
        generator.uniform(-1, 1, (steps, 3)).astype(np.float32),
        generator.standard_normal(steps).astype(np.float32),
        terminals,
    )


def write_dataset(rootdir: Path, lengths: list[int]) -> Path:
    for k, steps in enumerate(lengths):
        write_episode(rootdir / f"thread_{k % 2}" / f"rollout_{k}.npz", make_episode(steps, k))
    return rootdir


@pytest.fixture(scope="session", autouse=True)
def import_once():
    """Start the server from which scripts and workers are forked, with what `preloaded` imports."""
    multiprocessing.forkserver.set_forkserver_preload(["preloaded"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "tests")]))
        multiprocessing.forkserver.ensure_running()
    workers_from_server()


def workers_from_server():
    """From now on this process's workers come from the server, instead of being spawned.

    They have the environment of the tests, not that of the script. Scripts that the tests start
    as a user does, with an interpreter of their own, spawn their workers.
    """
    server = multiprocessing.get_context("forkserver")
    multiprocessing.get_context = lambda method=None: server


def fork(script, *arguments, cwd, env=None, stdout=os.devnull, stderr=os.devnull) -> BaseProcess:
    """Start one of the repository's scripts in a process that has done most imports already.

    So have its workers: see `workers_from_server`. The script may be `-m`, with a module next.
    """
    server = multiprocessing.get_context("forkserver")
    command = [script if script == "-m" else str(ROOT / script), *map(str, arguments)]
    environment = dict(os.environ if env is None else env)
    process = server.Process(target=forked, args=(command, cwd, environment, stdout, stderr))
    process.start()
    return process


def forked(command, cwd, environment, stdout, stderr):
    assert "preloaded" in sys.modules  # the server passes over what it cannot import
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    for descriptor, path in ((1, stdout), (2, stderr)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT, 0o644), descriptor)
    # Python would start another server for it, with the imports to do.
    multiprocessing.forkserver._forkserver.ensure_running = lambda: None
    workers_from_server()
    if command[0] == "-m":
        sys.argv = command[1:]
        warnings.simplefilter("ignore")  # of runpy, that the server has imported it
        runpy.run_module(command[1], run_name="__main__", alter_sys=True)
        return
    sys.argv = command
    runpy.run_path(command[0], run_name="__main__")


def run_script(script: str, *arguments: object, cwd: Path, env=None, timeout=300):
    """Run one of the repository's scripts to its end, from another folder than its own.

    In a process that `fork` starts: what depends on the interpreter's own start is tested by the
    README's commands.
    """
    with tempfile.TemporaryDirectory() as folder:
        stdout, stderr = Path(folder, "stdout"), Path(folder, "stderr")
        process = fork(script, *arguments, cwd=cwd, env=env, stdout=stdout, stderr=stderr)
        try:
            process.join(timeout)
            said = stdout.read_text(), stderr.read_text()
            assert process.exitcode is not None, f"{script} {arguments} hangs: {said}"
        finally:
            process.kill()
        return subprocess.CompletedProcess([script, *arguments], process.exitcode, *said)


@pytest.fixture
def run_here(monkeypatch, capfd):
    """What runs a script as `run_script` does, but in this process, which spares another one.

    Not for what drives in workers, or is to be killed.
    """

    def run(script: str, *arguments: object, cwd: Path) -> subprocess.CompletedProcess:
        monkeypatch.chdir(cwd)
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        capfd.readouterr()
        code = 0
        try:
            runpy.run_path(str(ROOT / script), run_name="__main__")
        except SystemExit as end:
            code = end.code or 0
        return subprocess.CompletedProcess(sys.argv, code, *capfd.readouterr())

    return run


@pytest.fixture
def dataset(tmp_path) -> Path:
    """Four synthetic episodes of 40 to 70 frames."""
    return write_dataset(tmp_path / "data", [40, 50, 60, 70])


def make_experiment(logdir: Path) -> Path:
    """A logdir with V, M and C, in the form of the public checkpoints.

    V and M have random weights. C drives straight ahead: its episodes are short, because it soon
    leaves the field.
    """
    torch.manual_seed(0)
    common = {"epoch": 7, "precision": 35.5, "optimizer": {}, "scheduler": {}, "earlystopping": {}}
    save_checkpoint(logdir / "vae" / "best.tar", {**common, "state_dict": VAE().state_dict()})
    save_checkpoint(logdir / "mdrnn" / "best.tar", {**common, "state_dict": MDRNN().state_dict()})
    ahead = Controller()
    with torch.no_grad():
        ahead.fc.weight.zero_()
        ahead.fc.bias.copy_(torch.tensor([0.0, 0.5, 0.0]))
    controller = {"epoch": 3, "reward": -20.0, "state_dict": ahead.state_dict()}
    save_checkpoint(logdir / "ctrl" / "best.tar", controller)
    return logdir


@pytest.fixture
def experiment(tmp_path) -> Path:
    return make_experiment(tmp_path / "exp_dir")


@pytest.fixture
def dreamer(tmp_path):
    """A logdir whose M, with random weights, passes for one that has learned rewards.

    Its dreams begin in episodes of 12 and 90 frames.
    """
    logdir = make_experiment(tmp_path / "exp")
    path = logdir / "mdrnn/best.tar"
    save_checkpoint(path, load_checkpoint(path) | {"heads": "latents, terminals, rewards"})
    folder = logdir / "latents" / f"{weights_digest(load_vae(logdir).encoder)[:16]}-float32"
    (folder / "thread_0").mkdir(parents=True)
    generator = np.random.default_rng(0)
    for k, length in enumerate((12, 90)):
        mu, actions = (
            generator.standard_normal((length, size)).astype(np.float32) for size in (32, 3)
        )
        np.savez(folder / "thread_0" / f"rollout_{k}.npz", mu=mu, actions=actions)
    return logdir
