"""What users of this kind of program reported: each with the smallest input that showed it."""

import errno
import fcntl
import json
import os
import resource
import runpy
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, make_episode, make_experiment, run_script, write_dataset

from data.episodes import list_episodes, read_episode, split_episodes, write_episode
from data.latents import encode_episodes
from data.playing import controller_policy, load_driver
from envs import viewer
from models.controller import Controller
from models.mdrnn import MDRNN
from models.vae import VAE, Encoder
from utils import devices, spinning, workers
from utils.checkpoint import load_checkpoint, save_checkpoint
from utils.cli import UserError
from utils.cli import run_script as run_main
from utils.cores import available_cores
from utils.curves import Curves
from utils.files import atomic_write, exclusive
from utils.streams import stream
from utils.workers import WorkerPool

CPU = torch.device("cpu")
VAE_RUN = ["trainvae.py", "--logdir", "exp", "--rootdir", "data", "--device", "cpu", "--nosamples"]
RNN_RUN = ["trainmdrnn.py", "--logdir", "exp", "--rootdir", "data", "--device", "cpu"]
CTRL_RUN = ["traincontroller.py", "--logdir", "exp", "--device", "cpu", "--pop-size", 4]
CTRL_RUN += ["--n-samples", 1, "--eval-rollouts", 2, "--eval-every", 1, "--patience", 20]


# Data


def save_plan(path: Path, frames: int, actions: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(
        path,
        observations=np.zeros((frames, 64, 64, 3), np.uint8),
        rewards=np.zeros(frames),
        actions=np.arange(3.0 * actions).reshape(actions, 3),
        terminals=np.zeros(frames, bool),
    )


@pytest.mark.parametrize("actions", [301, 302, 1000, 1001])
def test_an_episode_that_ended_before_its_plan_keeps_the_actions_it_had(actions, tmp_path):
    save_plan(tmp_path / "thread_0" / "rollout_0.npz", 301, actions)
    (file,) = list_episodes(tmp_path)
    episode = read_episode(file.path)
    assert file.length == len(episode.observations) == 301
    np.testing.assert_array_equal(episode.actions, np.arange(903.0).reshape(301, 3))


@pytest.mark.filterwarnings("ignore:skipped")
def test_fewer_actions_than_frames_are_no_episode(tmp_path):
    save_plan(tmp_path / "a.npz", 301, 300)
    with pytest.raises(UserError, match="no usable episode"):
        list_episodes(tmp_path)


def test_no_episode_is_read_by_two_names(tmp_path):
    write_dataset(tmp_path / "data", [4, 5, 6])
    elsewhere = write_dataset(tmp_path / "elsewhere", [7])
    (tmp_path / "data" / "latest").symlink_to(".")  # a circle
    (tmp_path / "data" / "again").symlink_to("thread_0")
    (tmp_path / "data" / "more").symlink_to(elsewhere)  # is followed, once
    (tmp_path / "data" / "a.npz").symlink_to("thread_1/rollout_1.npz")
    os.link(tmp_path / "data/thread_0/rollout_2.npz", tmp_path / "data/thread_0/rollout_3.npz")
    (tmp_path / "data" / "self").symlink_to("self")
    (tmp_path / "root").symlink_to("data")
    for root in ("data", "root"):
        names = [file.name for file in list_episodes(tmp_path / root)]
        assert names == [
            "more/thread_0/rollout_0.npz",
            "thread_0/rollout_0.npz",
            "thread_0/rollout_2.npz",
            "thread_1/rollout_1.npz",
        ]


def test_an_episodes_side_depends_on_its_own_number_alone(tmp_path):
    def held_out(numbers, threads):
        root = tmp_path / f"{threads}-{len(numbers)}"
        for k in numbers:
            write_episode(root / f"thread_{k % threads}" / f"rollout_{k}.npz", make_episode(2))
        train, test = split_episodes(list_episodes(root))
        assert not {f.name for f in train} & {f.name for f in test}
        return {int(f.name.split("_")[-1].removesuffix(".npz")) for f in test}

    few, many = held_out(range(30), 2), held_out(range(44), 2)
    assert few == {k for k in many if k < 30} and len(few) == 3
    assert held_out(range(44), 8) == many
    assert held_out([k for k in range(44) if k % 3], 2) == {k for k in many if k % 3}
    assert len(held_out([3, 4], 1)) == 1  # at least one


def test_numbers_that_begin_again_in_each_folder_hold_out_a_tenth(tmp_path, capsys):
    for folder, names in (
        ("threads", [f"thread_{t}/rollout_{k}.npz" for t in range(20) for k in (0, 1)]),
        ("others", [f"thread_{t}/{k}.npz" for t in range(20) for k in range(4)]),
        ("long", [f"thread_{t}/rollout_{k}.npz" for t in range(2) for k in range(30)]),
    ):
        for name in names:
            write_episode(tmp_path / folder / name, make_episode(1))
        _, test = split_episodes(list_episodes(tmp_path / folder))
        assert 0.03 * len(names) <= len(test) <= 0.2 * len(names)
    assert "held out" not in capsys.readouterr().out


def test_a_folder_that_cannot_be_read_is_left_out_and_named(tmp_path, monkeypatch):
    root = write_dataset(tmp_path / "data", [3, 4])
    (root / "lost+found").mkdir()
    iterdir = Path.iterdir

    def refusing(path):
        if path.name == "lost+found":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return iterdir(path)

    monkeypatch.setattr(Path, "iterdir", refusing)
    with pytest.warns(UserWarning, match=r"skipped 1 .*lost\+found: Permission denied"):
        assert len(list_episodes(root)) == 2


def test_an_episode_that_cannot_be_read_for_the_moment_is_not_made_again(tmp_path, run_here):
    command = ["data/generation_script.py", "--rootdir", "data", "--rollouts", 1]
    write_dataset(tmp_path / "data", [3])
    note = {"policy": "brown", "seed": 0, "patience": 0}
    (tmp_path / "data/generation.json").write_text(json.dumps(note))
    path = tmp_path / "data/thread_0/rollout_0.npz"

    def stale(file, *_, **__):
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("zipfile.ZipFile", stale)
        done = run_here(*command, cwd=tmp_path)
    assert done.returncode == 2 and "rollout_0.npz cannot be read" in done.stderr
    assert path.exists() and run_here(*command, cwd=tmp_path).returncode == 0


@pytest.mark.parametrize("lengths", [[600] * 9 + [240] + [600] * 2, [240] * 8 + [600] * 4])
def test_short_episodes_are_counted_and_the_others_held_out(lengths, run_here, tmp_path):
    for k, steps in enumerate(lengths):
        frames = np.zeros((steps, 64, 64, 3), np.uint8)
        signals = np.zeros((steps, 3), np.float32), np.zeros(steps, np.float32)
        path = tmp_path / "data" / f"thread_{k % 2}" / f"rollout_{k}.npz"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(
            path,
            observations=frames,
            actions=signals[0],
            rewards=signals[1],
            terminals=np.zeros(steps, bool),
        )
    make_experiment(tmp_path / "exp")
    (tmp_path / "exp/mdrnn/best.tar").unlink()
    done = run_here(*RNN_RUN, "--epochs", 1, "--seq-len", 500, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    short = lengths.count(240)
    assert f"{short} of 12 episodes are not longer than --seq-len 500" in done.stdout
    assert f"{11 - short} episodes to train on, 1 held out" in done.stdout
    refused = run_here(*RNN_RUN, "--epochs", 1, "--seq-len", 600, cwd=tmp_path)
    assert refused.returncode == 2 and "0 of 12 episodes are longer" in refused.stderr


def test_windows_take_hardly_more_memory_than_the_latents(tmp_path):
    code = f"""
import sys; sys.path.insert(0, {str(ROOT)!r})
import numpy as np, torch, psutil
from pathlib import Path
from data.latents import Latents, LatentEpisode
from data.loaders import WindowLoader
path, T, N = Path("l.npz"), 1000, 300
rng = np.random.default_rng(0)
e = LatentEpisode(rng.normal(size=(T, 32)).astype("f4"), rng.normal(size=(T, 32)).astype("f4"),
    np.zeros((T, 3), "f4"), np.zeros(T, "f4"), np.zeros(T, bool))
np.savez(path, **e._asdict())
size = N * sum(a.nbytes for a in e)
WindowLoader([Latents(path, T)] * 2, 16, 32, torch.device("cpu"), True)
Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here on
peak = lambda: int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024
before = peak()
loader = WindowLoader([Latents(path, T)] * N, 16, 32, torch.device("cpu"), True)
for rows in loader.rows(np.random.default_rng(0)):
    loader.look_up(rows)
print((peak() - before) / size)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert 0.5 < float(done.stdout) < 1.3


def test_latents_of_another_encoder_go_when_the_new_ones_are_there(dataset, tmp_path, monkeypatch):
    files, encoders = list_episodes(dataset), [Encoder(), Encoder()]
    encode_episodes(files, encoders[0], tmp_path, CPU, torch.float32)
    (first,) = (tmp_path / "latents").iterdir()
    monkeypatch.setattr("data.latents._encode", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        encode_episodes(files, encoders[1], tmp_path, CPU, torch.float32)
    assert len(list(first.rglob("*.npz"))) == len(files)
    monkeypatch.undo()
    encode_episodes(files, encoders[1], tmp_path, CPU, torch.float32)
    (second,) = (tmp_path / "latents").iterdir()
    assert first.name != second.name
    # Nothing else is removed, and a link is, but not what it leads to.
    elsewhere = tmp_path / "scratch"
    elsewhere.mkdir()
    (tmp_path / "latents" / "of_mine").mkdir()
    (tmp_path / "latents" / f"{'a' * 16}-float32").symlink_to(elsewhere)
    encode_episodes(files, encoders[1], tmp_path, CPU, torch.float32)
    left = {path.name for path in (tmp_path / "latents").iterdir()}
    assert left == {second.name, "of_mine"} and elsewhere.is_dir()
    # Precisions are told apart.
    assert first.name.endswith("-float32") and second.name.endswith("-float32")


# File systems


def test_without_locks_it_is_said_and_goes_on(tmp_path, monkeypatch, capsys):
    for number in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):

        def flock(*_, number=number):
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(fcntl, "flock", flock)
        ran = False
        with exclusive(tmp_path, "vae"):
            ran = True
        said = capsys.readouterr().out
        assert ran and said.count("\n") == 1
        assert str(tmp_path) in said and "has no locks" in said and "stage vae" in said


def test_other_errors_of_a_lock_name_its_file(tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", flock)
    with (
        pytest.raises(UserError, match=r"\.vae\.lock.*Input/output error"),
        exclusive(tmp_path, "vae"),
    ):
        pass


def test_a_write_that_fails_names_its_file(tmp_path):
    with pytest.raises(OSError) as caught, atomic_write(tmp_path / "a.npz"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.filename == str(tmp_path / "a.npz")


def test_a_file_system_without_sync_is_written_to(tmp_path, monkeypatch):
    def fsync(_):
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "fsync", fsync)
    with atomic_write(tmp_path / "a") as file:
        file.write(b"here")
    assert (tmp_path / "a").read_bytes() == b"here"


def read_events(folder: Path) -> Iterator:
    from tensorboardX.proto.event_pb2 import Event

    for path in sorted(folder.glob("events*"), key=lambda path: path.name.split(".")[-1]):
        data, at = path.read_bytes(), 0
        while at < len(data):
            size = int.from_bytes(data[at : at + 8], "little")
            event = Event.FromString(data[at + 12 : at + 12 + size])
            at += 16 + size
            yield event


def read_curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    curves = {}
    for event in read_events(folder):
        for value in event.summary.value:
            curves.setdefault(value.tag, []).append((event.step, value.simple_value))
    return curves


def read_starts(folder: Path) -> list[int]:
    """From which steps on a file hides what earlier ones have."""
    return [event.step for event in read_events(folder) if event.session_log.status == 1]


def test_a_failed_write_of_a_curve_costs_that_curve_alone(tmp_path, capsys):
    curves = Curves(tmp_path / "tensorboard", 1)
    curves.add({"loss": 3.0}, 1)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, limit[1]))  # as on a full disk
        for step in range(2, 30):
            curves.add({"loss": 2.0, "rate": 1.0}, step)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, before)
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "curves cannot be written" in said
    curves.add({"loss": 1.0}, 30)
    curves.add_picture("grid", torch.rand(3, 8, 8), 30)
    curves.close()
    assert read_curves(tmp_path / "tensorboard")["loss"] == [(1, 3.0), (30, 1.0)]
    assert read_starts(tmp_path / "tensorboard") == [1, 2]  # hides nothing of this training


def test_curves_that_are_done_again_hide_those_of_a_killed_training(tmp_path):
    (tmp_path / "tensorboard").touch()  # no folder can be made there, at first
    curves = Curves(tmp_path / "tensorboard", 7)
    curves.add({"loss": 3.0}, 7)
    (tmp_path / "tensorboard").unlink()
    curves.add({"loss": 2.0}, 8)
    curves.close()
    assert read_starts(tmp_path / "tensorboard") == [7]


@pytest.mark.parametrize("what", ["tensorboard", "samples"])
def test_curves_and_pictures_that_cannot_be_made_cost_no_training(what, run_here, tmp_path):
    write_dataset(tmp_path / "data", [30, 30])
    (tmp_path / "exp" / "vae").mkdir(parents=True)
    (tmp_path / "exp" / "vae" / what).touch()  # no folder can be made there
    command = [c for c in VAE_RUN if c != "--nosamples"]
    done = run_here(*command, "--epochs", 2, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert load_checkpoint(tmp_path / "exp/vae/checkpoint.tar")["epoch"] == 2
    said = [line for line in done.stderr.splitlines() if what in line]
    assert said and all("cannot be written" in s or "could not be made" in s for s in said)
    assert "Traceback" not in done.stderr


# What is there already


def test_c_goes_on_from_a_controller_that_is_there(run_here, tmp_path):
    make_experiment(tmp_path / "exp")
    theirs = Controller().load_flat(torch.randn(867) * 0.1)
    public = {"epoch": 3, "reward": 900.0, "state_dict": theirs.state_dict()}
    save_checkpoint(tmp_path / "exp/ctrl/best.tar", public)
    done = run_script(*CTRL_RUN, "--sigma", 1e-9, "--max-generations", 1, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "the search starts from it" in done.stdout
    state = load_checkpoint(tmp_path / "exp/ctrl/checkpoint.tar")["state"]
    np.testing.assert_allclose(state["champion"], theirs.flat_parameters(), atol=1e-4)
    afresh = run_script(
        *CTRL_RUN, "--sigma", 1e-9, "--max-generations", 1, "--noreload", cwd=tmp_path
    )
    assert "the search starts from" not in afresh.stdout
    state = load_checkpoint(tmp_path / "exp/ctrl/checkpoint.tar")["state"]
    assert state["champion"].abs().max() < 1e-4


@pytest.mark.parametrize(
    "stage, command, model", [("vae", VAE_RUN, VAE), ("mdrnn", RNN_RUN, MDRNN)]
)
def test_the_loss_to_beat_is_measured_on_these_episodes(stage, command, model, run_here, tmp_path):
    steps = {"vae": 20, "mdrnn": 60}[stage]

    def write(episodes):  # alike, so that what is learnt helps with those that are held out
        for k in range(episodes):
            path = tmp_path / "data" / "thread_0" / f"rollout_{k}.npz"
            write_episode(path, make_episode(steps))

    write(4)
    make_experiment(tmp_path / "exp")
    path = tmp_path / "exp" / stage / "best.tar"
    weights = model().state_dict()
    save_checkpoint(path, {"state_dict": weights, "epoch": 27, "precision": 1e-3})
    done = run_here(*command, "--epochs", 30, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "weights of epoch 27" in done.stdout and "epoch 30: train" in done.stdout
    assert "on the episodes that are held out here" in done.stdout
    best = load_checkpoint(path)
    assert best["epoch"] > 27 and best["precision"] > 1e-3
    # On other data it is measured again, and said.
    write(22)
    again = run_here(*command, "--epochs", 31, cwd=tmp_path)
    assert "the episodes to train on were 3 episodes" in again.stdout
    assert "the episodes held out were 1 episodes" in again.stdout
    assert "on the episodes that are held out here" in again.stdout
    same = run_here(*command, "--epochs", 31, cwd=tmp_path)
    assert "were" not in same.stdout and "held out here" not in same.stdout
    # Other frames under the same names, and the same length.
    for k in range(22):
        write_episode(tmp_path / "data/thread_0" / f"rollout_{k}.npz", make_episode(steps, 1 + k))
    other = run_here(*command, "--epochs", 32, cwd=tmp_path)
    assert "the episodes to train on were 20 episodes" in other.stdout
    assert "on the episodes that are held out here" in other.stdout


def test_a_foreign_checkpoint_stays_the_best_until_it_is_beaten(run_here, tmp_path):
    """A `checkpoint.tar` of another program, and no `best.tar`."""
    write_dataset(tmp_path / "data", [30, 30])
    torch.manual_seed(0)
    weights = VAE().state_dict()
    weights["decoder.deconv4.bias"] += 0.01
    save_checkpoint(tmp_path / "exp/vae/checkpoint.tar", {"state_dict": weights, "epoch": 3})
    command = ["trainvae.py", "--logdir", "exp", "--rootdir", "data", "--device", "cpu"]
    # At such a rate nothing gets better.
    done = run_here(*command, "--nosamples", "--epochs", 4, "--learning-rate", 0.5, cwd=tmp_path)
    assert "weights of epoch 3" in done.stdout
    best = load_checkpoint(tmp_path / "exp/vae/best.tar")
    assert best["epoch"] == 3
    assert all(torch.equal(best["state_dict"][name], tensor) for name, tensor in weights.items())


def test_a_checkpoint_tells_what_was_trained(run_here, tmp_path):
    write_dataset(tmp_path / "data", [60] * 4)
    make_experiment(tmp_path / "exp")
    (tmp_path / "exp/mdrnn/best.tar").unlink()
    for options, heads in (
        ([], "latents, terminals"),
        (["--include_reward"], "latents, terminals, rewards"),
    ):
        done = run_here(*RNN_RUN, "--epochs", 1, "--noreload", *options, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert load_checkpoint(tmp_path / "exp/mdrnn/best.tar")["heads"] == heads
    shipped = load_checkpoint(ROOT / "pretrained/mdrnn/best.tar")
    assert shipped["about"]["heads"] == "latents, terminals"


# Random numbers


def test_no_two_purposes_share_random_numbers():
    draws = {
        (purpose, *key): tuple(stream(purpose, *key).integers(2**60, size=4))
        for purpose in ("candidates", "actions", "noise", "V's epoch", "M's epoch")
        for key in ((0, 0), (0, 1), (1, 0), (7, 7))
    }
    assert len(set(draws.values())) == len(draws)
    assert draws["noise", 0, 1] == tuple(stream("noise", 0, 1).integers(2**60, size=4))


# Machines


def write_groups(root: Path, lines: str, files: dict[str, str]) -> Path:
    for path, content in {"proc/self/cgroup": lines, **files}.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(content)
    return root


@pytest.mark.parametrize(
    "lines, files, cores",
    [
        ("0::/\n", {"sys/fs/cgroup/cpu.max": "200000 100000\n"}, 2),
        ("0::/\n", {"sys/fs/cgroup/cpu.max": "max 100000\n"}, 64),
        ("0::/\n", {"sys/fs/cgroup/cpu.max": "50000 100000\n"}, 1),
        ("0::/\n", {"sys/fs/cgroup/cpu.max": "150000 100000\n"}, 2),
        (
            "0::/pod/job\n",
            {
                "sys/fs/cgroup/pod/cpu.max": "300000 100000\n",
                "sys/fs/cgroup/pod/job/cpu.max": "max 100000\n",
            },
            3,
        ),
        ("0::/of/the/host\n", {"sys/fs/cgroup/cpu.max": "400000 100000\n"}, 4),
        (
            "4:cpu,cpuacct:/q\n3:memory:/\n",
            {
                "sys/fs/cgroup/cpu,cpuacct/q/cpu.cfs_quota_us": "100000\n",
                "sys/fs/cgroup/cpu,cpuacct/q/cpu.cfs_period_us": "100000\n",
            },
            1,
        ),
        (
            "4:cpu:/\n",
            {
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            64,
        ),
        ("", {}, 64),
    ],
)
def test_cores_are_those_of_the_quota(lines, files, cores, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    assert available_cores(write_groups(tmp_path, lines, files)) == cores
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    assert available_cores(tmp_path) == 1


NO_KERNEL = "CUDA error: no kernel image is available for execution on the device\nCompile with"


@pytest.mark.parametrize(
    "message", [NO_KERNEL, "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED", "CUDA unknown error"]
)
def test_what_cuda_says_is_one_line(message, monkeypatch, capsys):
    def main():
        raise RuntimeError(message)

    with pytest.raises(SystemExit) as end:
        run_main(main)
    said = capsys.readouterr().err
    assert end.value.code == 2 and said.count("\n") == 1
    assert message.splitlines()[0] in said and "--device cpu" in said


def test_a_gpu_that_cannot_compute_is_left_alone(monkeypatch, capsys):
    def ones(*_, **__):
        raise RuntimeError(NO_KERNEL)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch, "ones", ones)
    devices.why_no_gpu.cache_clear()
    try:
        assert devices.choose_device("auto") == CPU
        said = capsys.readouterr().out
        assert said.count("\n") == 1 and "no kernel image" in said
        with pytest.raises(UserError, match=r"--device cuda: CUDA error: no kernel.*--device cpu"):
            devices.choose_device("cuda")
    finally:
        devices.why_no_gpu.cache_clear()


def setup_stopping(index, mark):
    """A worker that stops itself in its first unit, as a debugger or a driver may."""

    def work(unit, report):
        if unit == "stops" and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGSTOP)
        if unit == "slow":
            for _ in range(40):
                time.sleep(0.1)
                report()
        return unit

    return work


def test_a_stuck_worker_is_replaced_and_a_slow_one_is_not(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(workers, "SIGN_EVERY", 0.5)
    arguments = (tmp_path / "mark",)
    with WorkerPool(2, setup_stopping, arguments, tmp_path / "logs", stuck_after=8) as pool:
        results = dict(pool.run(["stops", "fine", "slow", "x" * 10**6]))
    assert results == {0: "stops", 1: "fine", 2: "slow", 3: "x" * 10**6}
    said = capfd.readouterr().err
    assert said.count("gave no sign of life for 8 s") >= 1
    assert said.count("its work is done again") == 1


def test_a_worker_that_was_stopped_between_runs_is_replaced(tmp_path, capfd):
    arguments = (tmp_path / "mark",)
    with WorkerPool(1, setup_stopping, arguments, tmp_path / "logs", stuck_after=8) as pool:
        assert dict(pool.run(["fine"])) == {0: "fine"}
        os.kill(pool._workers[0].process.pid, signal.SIGSTOP)
        assert dict(pool.run(["x" * 10**6])) == {0: "x" * 10**6}  # more than a pipe holds
    assert "gave no sign of life" in capfd.readouterr().err


def setup_echo(index):
    def work(unit, report):
        time.sleep(unit % 1)
        return unit

    return work


def test_a_run_that_is_left_early_does_not_mix_with_the_next_one(tmp_path):
    with WorkerPool(2, setup_echo, (), tmp_path) as pool:
        run = pool.run([10.0, 11.5, 12.5])
        assert next(run) == (0, 10.0)
        run.close()
        assert dict(pool.run([20.0, 21.0, 22.0])) == {0: 20.0, 1: 21.0, 2: 22.0}


def test_data_are_driven_by_the_controller_that_was_there_at_the_start(tmp_path):
    make_experiment(tmp_path / "exp")
    driver = load_driver(tmp_path / "exp")
    other = Controller().load_flat(torch.randn(867))
    save_checkpoint(tmp_path / "exp/ctrl/best.tar", {"state_dict": other.state_dict()})
    policy = controller_policy(driver, 0.0)([0], 0)
    assert torch.equal(policy.parameters[0], torch.from_numpy(driver.weights))
    torch.manual_seed(5)
    save_checkpoint(tmp_path / "exp/mdrnn/best.tar", {"state_dict": MDRNN().state_dict()})
    with pytest.raises(UserError, match="changed since the start"):
        controller_policy(driver, 0.0)


# Looking on


def test_closing_the_window_ends_the_driving(experiment, monkeypatch, capsys):
    pygame = pytest.importorskip("pygame")
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    monkeypatch.setenv("DISPLAY", ":0")
    # Gymnasium draws 50 frames a second for a spectator, and the car leaves the field after some.
    command = ["test_controller.py", "--logdir", str(experiment), "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", [*command, "--episodes", "100"])

    def close():
        while not pygame.display.get_init() or pygame.display.get_surface() is None:
            time.sleep(0.05)
        time.sleep(1)
        pygame.event.post(pygame.event.Event(pygame.QUIT))

    threading.Thread(target=close, daemon=True).start()
    start = time.monotonic()
    runpy.run_path(str(ROOT / "test_controller.py"), run_name="__main__")
    assert time.monotonic() - start < 60
    assert "the window was closed, after" in capsys.readouterr().out


def test_other_keys_do_not_close_the_window(monkeypatch):
    pygame = pytest.importorskip("pygame")
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    assert not viewer.window_closed()  # where there is none
    pygame.display.init()
    try:
        for event, closes in (
            (pygame.event.Event(pygame.KEYDOWN, key=pygame.K_UP), False),
            (pygame.event.Event(pygame.KEYDOWN, key=pygame.K_ESCAPE), True),
            (pygame.event.Event(pygame.QUIT), True),
        ):
            pygame.event.post(event)
            assert viewer.window_closed() is closes
            assert not viewer.window_closed()
    finally:
        pygame.display.quit()


@pytest.mark.parametrize("trouble", ["folder", "encoder"])
def test_a_video_that_cannot_be_made_costs_no_score(trouble, experiment, run_here, monkeypatch):
    video = experiment / "videos" / "a.mp4"
    if trouble == "folder":
        video.parent.touch()
    else:
        import imageio.v2 as imageio

        def get_writer(*_, **__):
            raise RuntimeError("No ffmpeg exe could be found")

        monkeypatch.setattr(imageio, "get_writer", get_writer)
    command = ["test_controller.py", "--logdir", experiment, "--device", "cpu", "--video", video]
    done = run_here(*command, cwd=experiment)
    assert done.returncode == 0, done.stderr
    assert "over 1 episodes" in done.stdout and "video:" not in done.stdout
    said = [line for line in done.stderr.splitlines() if "cannot be made" in line]
    assert len(said) == 1 and "Traceback" not in done.stderr
    assert not list(experiment.glob("**/.*.tmp*"))


def test_a_video_that_ffmpeg_could_not_finish_replaces_none(tmp_path, capsys):
    """As on a disk that is full: ffmpeg fails, and imageio does not tell."""
    path = tmp_path / "a.mp4"
    path.write_bytes(b"good")
    video = viewer.Video(path, VAE())
    with video:
        for _ in range(3):
            video.add(lambda: np.zeros((400, 600, 3), np.uint8), np.zeros((96, 96, 3), np.uint8))
        video.writer.close()
        video.unfinished.write_bytes(video.unfinished.read_bytes()[:200])
    assert video.failed and path.read_bytes() == b"good"
    assert "cannot be made" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]


def test_a_worker_without_a_log_is_one_line(experiment, run_here):
    (experiment / "tmp" / "worker_0.log").mkdir(parents=True)
    command = ["test_controller.py", "--logdir", experiment, "--device", "cpu", "--no-render"]
    done = run_here(*command, cwd=experiment)
    assert done.returncode == 2 and "worker_0.log" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


SHARING = """
import os, subprocess, sys, time
import torch
from utils.spinning import TASKS, Watch, share_cores

threads = lambda: len(list(TASKS.iterdir()))
a = torch.randn(512, 512, generator=torch.Generator().manual_seed(0))
alone = a @ a
watch = Watch()
watch.decide(0.01)
idle = threads()
watch.decide(0.3)
cores = len(os.sched_getaffinity(0))
for _ in range(100):
    if threads() - idle >= cores: break
    time.sleep(0.1)
assert threads() - idle >= cores, (threads(), idle)
assert torch.equal(a @ a, alone)
watch.decide(0.1)
assert watch.sleeping is not None  # neither shared nor idle: as it was
watch.decide(0.0)
for _ in range(100):
    if threads() == idle: break
    time.sleep(0.1)
assert threads() == idle, (threads(), idle)

# What decides is there: beside as many busy processes as cores, a thread waits for a core.
busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(cores)]
try:
    with share_cores():
        for _ in range(120):
            end = time.monotonic() + 0.5
            while time.monotonic() < end: a @ a
            if threads() - idle >= cores: break
        assert threads() - idle >= cores, (threads(), idle)
finally:
    for process in busy: process.kill()
print("shared")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="others have another OpenMP")
def test_threads_sleep_beside_other_processes_and_compute_the_same():
    """Beside one busy process a training fell to a fifth, for OpenMP's threads spin."""
    environment = os.environ | {"OMP_NUM_THREADS": "2", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", SHARING], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stdout.endswith("shared\n"), done.stderr
    assert done.stdout.count("cores are shared") == 2  # of two watches, once each


def test_no_threads_are_made_where_there_is_no_room(monkeypatch, capsys):
    """OpenMP would end the process."""
    start = threading.Thread.start
    started = []

    def limited(thread):
        if len(started) == 5:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)
    watch = spinning.Watch()
    for _ in range(2):
        watch.decide(0.9)
    assert watch.sleeping is None and len(started) == 5
    assert "no room" in capsys.readouterr().out
    assert not any(thread.is_alive() for thread in started)
