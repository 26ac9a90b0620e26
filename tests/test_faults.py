"""Killed processes, damaged and hostile files, full disks, contradictions: nothing is lost."""

import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from conftest import ROOT, fork, make_experiment, run_script, write_dataset

from data.episodes import list_episodes, read_episode, split_episodes, write_episode
from utils.checkpoint import load_checkpoint, save_checkpoint
from utils.cli import UserError
from utils.evolution import finite_fitness
from utils.files import exclusive

SMALL_VAE = ["--batch-size", 8, "--nosamples", "--device", "cpu"]
SMALL_RNN = ["--batch-size", 2, "--seq-len", 8, "--device", "cpu"]


def kill_when(process, condition, delay=0.0, limit=120):
    """kill -9 the process some time after a condition became true."""
    deadline = time.monotonic() + limit
    while not condition() and time.monotonic() < deadline and process.is_alive():
        time.sleep(0.005)
    time.sleep(delay)
    process.kill()
    process.join()


def assert_same(a, b):
    """Two checkpoints hold the same, bit for bit."""
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    else:
        assert a == b or (a != a and b != b)


@pytest.mark.parametrize("stage", ["vae", "mdrnn"])
def test_a_training_that_was_killed_ends_as_if_it_had_not_been(stage, tmp_path):
    """Five epochs in one go, and five with a kill -9 in the middle: the same bits."""
    data = write_dataset(tmp_path / "data", [40, 40, 40, 40])
    script, small = {"vae": ("trainvae.py", SMALL_VAE), "mdrnn": ("trainmdrnn.py", SMALL_RNN)}[
        stage
    ]
    for name in ("whole", "killed"):
        if stage == "mdrnn":
            make_experiment(tmp_path / name)
            shutil.rmtree(tmp_path / name / "mdrnn")
    command = [script, *small, "--rootdir", data, "--epochs", 5, "--logdir"]
    run_script(*command, "whole", cwd=tmp_path).check_returncode()
    checkpoint = tmp_path / "killed" / stage / "checkpoint.tar"
    kill_when(fork(*command, "killed", cwd=tmp_path), checkpoint.exists)
    assert load_checkpoint(checkpoint)["epoch"] < 5, "killed too late to be a test"
    resumed = run_script(*command, "killed", cwd=tmp_path)
    assert resumed.returncode == 0 and "continuing after epoch" in resumed.stdout
    for file in ("checkpoint.tar", "best.tar"):
        whole, killed = (load_checkpoint(tmp_path / n / stage / file) for n in ("whole", "killed"))
        assert_same(whole, killed)


@pytest.mark.parametrize(
    "switch, every",
    [([], 2), (["--refine-from", 2, "--refine-screen", 2], 3)],
)
def test_a_controller_training_that_was_killed_ends_as_if_it_had_not_been(
    switch, every, run_here, tmp_path
):
    options = ["--pop-size", 4, "--n-samples", 1, "--eval-every", every, "--eval-rollouts", 1]
    command = ["traincontroller.py", *options, "--patience", 5, "--max-generations", 3]
    command += [*switch, "--device", "cpu"]
    for name in ("whole", "killed"):
        shutil.rmtree(make_experiment(tmp_path / name) / "ctrl")
    whole = run_script(*command, "--logdir", "whole", cwd=tmp_path)
    whole.check_returncode()
    checkpoint = tmp_path / "killed/ctrl/checkpoint.tar"
    kill_when(fork(*command, "--logdir", "killed", cwd=tmp_path), checkpoint.exists, delay=0.3)
    assert load_checkpoint(checkpoint)["state"]["generation"] < 3
    resumed = run_script(*command, "--logdir", "killed", cwd=tmp_path)
    assert resumed.returncode == 0 and "continuing after generation" in resumed.stdout
    a, b = (load_checkpoint(tmp_path / n / "ctrl/checkpoint.tar") for n in ("whole", "killed"))
    for state in (a["state"], b["state"]):
        assert [row[0] for row in state["history"]] == [1, 2, 3]
        assert [row[0] for row in state["evaluations"]] == sorted({every, 3})
        state.pop("seconds")
        for row in state["history"] + state["evaluations"]:
            row[2] = "seconds"
    assert_same(a, b)
    a, b = (load_checkpoint(tmp_path / n / "ctrl/best.tar") for n in ("whole", "killed"))
    assert_same(a, b)
    for option, value in (("--pop-size", 5), ("--seed", 3), ("--sigma", 0.2)):
        refused = run_here(*command, option, value, "--logdir", "killed", cwd=tmp_path)
        assert refused.returncode == 2 and f"{option} {value}" in refused.stderr


def test_thirty_kills_at_random_moments_leave_every_checkpoint_whole(tmp_path):
    """Trainings of V and M are killed again and again, wherever they are; all files load."""
    data = write_dataset(tmp_path / "data", [30, 30, 30])
    make_experiment(tmp_path / "exp")
    shutil.rmtree(tmp_path / "exp" / "mdrnn")
    generator = random.Random(0)
    stages = {
        "vae": ["trainvae.py", *SMALL_VAE, "--epochs", 1000],
        "mdrnn": ["trainmdrnn.py", *SMALL_RNN, "--epochs", 100_000],
    }
    # M needs a V that does not change: the one in training has a logdir of its own.
    logdirs = {"vae": tmp_path / "exp_vae", "mdrnn": tmp_path / "exp"}
    epochs = dict.fromkeys(stages, 0)
    for kill in range(30):
        stage = ("vae", "mdrnn")[kill % 2]
        checkpoint = logdirs[stage] / stage / "checkpoint.tar"
        before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
        process = fork(*stages[stage], "--logdir", logdirs[stage], "--rootdir", data, cwd=tmp_path)
        kill_when(
            process,
            lambda c=checkpoint, b=before: c.exists() and c.stat().st_mtime_ns != b,
            delay=generator.uniform(0, 0.6),
        )
        state = load_checkpoint(checkpoint)
        best = load_checkpoint(checkpoint.with_name("best.tar"))
        assert state["epoch"] > epochs[stage]  # the work before the kill is there
        # best.tar may be one epoch ahead: it is written first, and that epoch is done again.
        assert best["epoch"] <= state["epoch"] + 1
        assert best["precision"] <= state["earlystopping"]["best"]
        epochs[stage] = state["epoch"]
        if state["earlystopping"]["bad_epochs"] > 10:  # it would soon end by itself
            shutil.rmtree(checkpoint.parent)
            epochs[stage] = 0


def test_a_killed_worker_changes_nothing(tmp_path):
    options = ["--pop-size", 4, "--n-samples", 1, "--eval-rollouts", 1, "--max-generations", 1]
    options += ["--sigma", 0.001, "--patience", 0, "--device", "cpu"]
    for name in ("quiet", "faults"):
        make_experiment(tmp_path / name)  # with a controller that soon leaves the field
    quiet = run_script("traincontroller.py", *options, "--logdir", "quiet", cwd=tmp_path)
    stdout, stderr = tmp_path / "stdout", tmp_path / "stderr"
    command = ["traincontroller.py", *options, "--logdir", "faults"]
    process = fork(*command, cwd=tmp_path, stdout=stdout, stderr=stderr)
    log = tmp_path / "faults/tmp/worker_0.log"
    deadline = time.monotonic() + 120
    while not (log.exists() and "first step" in log.read_text()) and time.monotonic() < deadline:
        time.sleep(0.02)
    script = psutil.Process(process.pid)
    started = [  # by the tests' server, of which the script itself is a child
        child
        for child in script.parent().children()
        if child != script and child.create_time() >= script.create_time()
    ]
    started[0].kill()
    process.join(300)
    output, errors = stdout.read_text(), stderr.read_text()
    assert process.exitcode == 0 and "killed by SIGKILL" in errors
    pattern = r"generation \d: return mean \S+, best \S+, worst \S+, sigma \S+"
    assert re.findall(pattern, output) == re.findall(pattern, quiet.stdout) != []


def test_the_second_training_in_a_logdir_is_refused_and_a_dead_ones_lock_is_none(tmp_path):
    data = write_dataset(tmp_path / "data", [20, 20])
    command = ["trainvae.py", *SMALL_VAE, "--logdir", "exp", "--rootdir", data, "--epochs", 1]
    with exclusive(tmp_path / "exp", "vae"):
        done = run_script(*command, cwd=tmp_path)
        assert done.returncode == 2 and "another process" in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
        assert not (tmp_path / "exp" / "vae").exists()
    assert (tmp_path / "exp/.vae.lock").exists()
    assert run_script(*command, cwd=tmp_path).returncode == 0


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def snapshot(folder: Path) -> dict:
    return {
        p.relative_to(folder): p.read_bytes()
        for p in folder.rglob("*")
        if p.is_file() and "tensorboard" not in p.parts and p.suffix not in (".log", ".lock")
    }


def missing(tmp_path):
    shutil.rmtree(tmp_path / "data")


def empty(tmp_path):
    shutil.rmtree(tmp_path / "data")
    (tmp_path / "data").mkdir()


def one_episode(tmp_path):
    shutil.rmtree(tmp_path / "data" / "thread_1")


def all_damaged(tmp_path):
    for path in (tmp_path / "data").rglob("*.npz"):
        path.write_bytes(path.read_bytes()[:500])


def truncated_vae(tmp_path):
    path = tmp_path / "exp/vae/best.tar"
    path.write_bytes(path.read_bytes()[:1000])


def hostile_vae(tmp_path):
    torch.save({"state_dict": Payload(tmp_path / "ran")}, tmp_path / "exp/vae/best.tar")


def truncated_mdrnn(tmp_path):
    path = tmp_path / "exp/mdrnn/best.tar"
    path.write_bytes(path.read_bytes()[:1000])


def hostile_checkpoints(tmp_path):
    for stage in ("vae", "mdrnn", "ctrl"):
        torch.save({"cma": Payload(tmp_path / "ran")}, tmp_path / "exp" / stage / "checkpoint.tar")


def smaller_controller(tmp_path):
    weights = {"fc.weight": torch.zeros(3, 64), "fc.bias": torch.zeros(3)}
    save_checkpoint(tmp_path / "exp/ctrl/best.tar", {"state_dict": weights})


def nan_rewards(tmp_path):
    for path in (tmp_path / "data/thread_0").iterdir():
        episode = read_episode(path)
        episode.rewards[3] = np.nan
        write_episode(path, episode)


def encrypted(tmp_path):
    for path in (tmp_path / "data").rglob("*.npz"):
        content = bytearray(path.read_bytes())
        for signature, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
            start = content.find(signature)
            while start >= 0:
                content[start + flags] |= 1
                start = content.find(signature, start + 4)
        path.write_bytes(content)


def smaller_vae(tmp_path):
    from models.vae import VAE

    save_checkpoint(tmp_path / "exp/vae/best.tar", {"state_dict": VAE(16).state_dict()})


def no_mdrnn(tmp_path):
    shutil.rmtree(tmp_path / "exp/mdrnn")


def hostile_controller(tmp_path):
    torch.save({"state_dict": Payload(tmp_path / "ran")}, tmp_path / "exp/ctrl/best.tar")


def rootdir_is_a_file(tmp_path):
    shutil.rmtree(tmp_path / "data")
    (tmp_path / "data").write_text("")


def logdir_is_a_file(tmp_path):
    shutil.rmtree(tmp_path / "exp")
    (tmp_path / "exp").write_text("")


def video_is_a_folder(tmp_path):
    (tmp_path / "taken.mp4").mkdir()


def nothing(tmp_path):
    pass


# No GPU, no display.
NOBODY = {"CUDA_VISIBLE_DEVICES": "", "DISPLAY": ""}
VAE_RUN = ["trainvae.py", *SMALL_VAE, "--logdir", "exp", "--rootdir", "data", "--epochs", 1]
RNN_RUN = ["trainmdrnn.py", *SMALL_RNN, "--logdir", "exp", "--rootdir", "data", "--epochs", 1]
CTRL_RUN = ["traincontroller.py", "--logdir", "exp", "--max-generations", 1]
TEST_RUN = ["test_controller.py", "--logdir", "exp"]
MAKE_RUN = ["data/generation_script.py", "--rootdir", "data", "--rollouts", 1]

MISTAKES = [
    (missing, VAE_RUN, "--rootdir data does not exist.*generation_script"),
    (empty, VAE_RUN, "no usable episode.*generation_script"),
    (one_episode, VAE_RUN, "at least two"),
    (one_episode, RNN_RUN, "at least two"),
    (all_damaged, VAE_RUN, "no usable episode"),
    (rootdir_is_a_file, VAE_RUN, "--rootdir data is no folder"),
    (rootdir_is_a_file, MAKE_RUN, "data"),
    (logdir_is_a_file, VAE_RUN, "exp"),
    (nothing, MAKE_RUN, "did not make"),
    (truncated_vae, RNN_RUN, "vae/best.tar is damaged"),
    (truncated_vae, CTRL_RUN, "vae/best.tar is damaged"),
    (hostile_vae, VAE_RUN, "vae/best.tar.*nothing in it was run"),
    (hostile_vae, TEST_RUN, "vae/best.tar.*nothing in it was run"),
    (hostile_controller, TEST_RUN, "ctrl/best.tar.*nothing in it was run"),
    (truncated_mdrnn, CTRL_RUN, "mdrnn/best.tar is damaged"),
    (hostile_controller, CTRL_RUN, "ctrl/best.tar.*nothing in it was run"),
    (hostile_checkpoints, VAE_RUN, "vae/checkpoint.tar.*nothing in it was run"),
    (hostile_checkpoints, RNN_RUN, "mdrnn/checkpoint.tar.*nothing in it was run"),
    (hostile_checkpoints, CTRL_RUN, "ctrl/checkpoint.tar.*nothing in it was run"),
    (smaller_controller, TEST_RUN, "ctrl/best.tar is of another model.*size mismatch"),
    (nan_rewards, VAE_RUN, "at least two"),
    (encrypted, VAE_RUN, "no usable episode"),
    (smaller_vae, RNN_RUN, "another model.*size mismatch"),
    (no_mdrnn, CTRL_RUN, "python trainmdrnn.py --logdir exp"),
    (video_is_a_folder, [*TEST_RUN, "--video", "taken.mp4"], "taken.mp4"),
    (nothing, [*VAE_RUN, "--epochs", 0], "--epochs.*at least 1"),
    (nothing, [*VAE_RUN, "--batch-size", -3], "--batch-size.*at least 1"),
    (nothing, [*VAE_RUN, "--learning-rate", "nan"], "--learning-rate"),
    (nothing, [*VAE_RUN, "--device", "cuda:7"], "cuda:7"),
    (nothing, [*VAE_RUN, "--device", "cuda"], "0 GPUs are visible"),
    (nothing, [*VAE_RUN, "--seed", 2**64], "--seed.*below"),
    (nothing, [*CTRL_RUN, "--target-return", "nan"], "--target-return.*finite"),
    (nothing, [*CTRL_RUN, "--max-workers", 0], "--max-workers.*at least 1"),
    (nothing, [*MAKE_RUN, "--logdir", "exp"], "--logdir is for --policy controller"),
    (nothing, [*VAE_RUN, "--device", "abacus"], "abacus"),
    (nothing, [*RNN_RUN, "--seq-len", 500], "--seq-len 500"),
    (nothing, [*CTRL_RUN, "--pop-size", 2], "--pop-size.*at least 3"),
    (nothing, [*CTRL_RUN, "--n-samples", 0], "--n-samples.*at least 1"),
    (nothing, [*CTRL_RUN, "--sigma", 0], "--sigma.*above 0"),
    (nothing, [*CTRL_RUN, "--memory", "some"], "invalid choice: 'some'"),
    (nothing, [*MAKE_RUN, "--policy", "controller"], "--policy controller needs.*--logdir"),
    (nothing, [*MAKE_RUN, "--noise", -1], "--noise.*0 or above"),
    (nothing, [*MAKE_RUN, "--noise", 0.1], "--noise is for --policy controller, not brown"),
    (nothing, [*MAKE_RUN, "--rollouts", 0], "--rollouts.*at least 1"),
    (nothing, [*MAKE_RUN, "--threads", "many"], "--threads.*whole number"),
]


@pytest.mark.filterwarnings("ignore:skipped")
@pytest.mark.parametrize("spoil, command, message", MISTAKES)
def test_a_mistake_is_one_line_and_destroys_nothing(
    spoil, command, message, run_here, tmp_path, monkeypatch
):
    write_dataset(tmp_path / "data", [30, 30])
    make_experiment(tmp_path / "exp")
    spoil(tmp_path)
    before = snapshot(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.delenv("DISPLAY", raising=False)
    done = run_here(*command, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    lines = [line for line in done.stderr.strip().splitlines() if "frame/s]" not in line]
    assert len(lines) == 1 and re.search(message, lines[0]), done.stderr
    assert not (tmp_path / "ran").exists()
    after = snapshot(tmp_path)
    assert {path: after.get(path) for path in before} == before


@pytest.fixture
def freeze():
    """Makes a folder read-only: by its mode, or for root, whom modes do not stop, by a mount."""
    mounts = []

    def read_only(folder: Path) -> None:
        if os.geteuid():
            for path in [*folder.rglob("*"), folder]:
                path.chmod(path.stat().st_mode & ~0o222)
            return
        for options in (["--bind", folder], ["-o", "remount,ro,bind"]):
            if subprocess.run(["mount", *options, folder], capture_output=True).returncode:
                pytest.skip("root may not mount here, and nothing else is read-only to root")
            mounts.append(folder)

    yield read_only
    for folder in set(mounts):
        subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize(
    "command",
    [VAE_RUN, RNN_RUN, CTRL_RUN, [*TEST_RUN, "--no-render"]],
    ids=lambda command: command[0],
)
def test_a_read_only_logdir_is_one_line(command, freeze, tmp_path):
    write_dataset(tmp_path / "data", [30, 30])
    freeze(make_experiment(tmp_path / "exp"))
    before = snapshot(tmp_path)
    done = run_script(*command, cwd=tmp_path, env=os.environ | NOBODY)
    assert done.returncode == 2, done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1 and "exp" in lines[0], lines
    assert re.search("Read-only|Permission", lines[0])
    assert snapshot(tmp_path) == before


def test_a_video_in_a_read_only_logdir_costs_no_score(freeze, tmp_path):
    freeze(make_experiment(tmp_path / "exp"))
    command = [*TEST_RUN, "--video", "exp/a.mp4"]
    done = run_script(*command, cwd=tmp_path, env=os.environ | NOBODY)
    assert done.returncode == 0 and "over 1 episodes" in done.stdout
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1 and re.search("exp/a.mp4.*(Read-only|Permission)", lines[0]), lines


def test_a_read_only_rootdir_is_one_line(freeze, tmp_path):
    (tmp_path / "data").mkdir()
    freeze(tmp_path / "data")
    done = run_script(*MAKE_RUN, cwd=tmp_path)
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1
    assert "data" in done.stderr


def test_a_display_that_does_not_answer_is_said_and_a_video_written(experiment, tmp_path):
    options = ["--logdir", experiment, "--device", "cpu"]
    env = os.environ | NOBODY | {"DISPLAY": ":9876", "WAYLAND_DISPLAY": ""}
    done = run_script("test_controller.py", *options, cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    assert "the display :9876 cannot be opened" in done.stdout
    assert (experiment / "controller.mp4").stat().st_size > 10_000


def test_an_interrupted_video_leaves_nothing(experiment, tmp_path):
    command = [sys.executable, ROOT / "test_controller.py", "--logdir", experiment]
    command += ["--device", "cpu", "--video", tmp_path / "videos" / "lap.mp4"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ours may be ignored
    )
    folder, until = tmp_path / "videos", time.monotonic() + 120
    while not any(f.stat().st_size for f in folder.glob(".*")) and time.monotonic() < until:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # Ctrl-C, which ffmpeg gets as well
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in errors, errors
    assert list(folder.iterdir()) == []


def test_damaged_frames_of_the_only_held_out_episode_hold_another_one_out(run_here, tmp_path):
    data = write_dataset(tmp_path / "data", [30, 30, 30])
    (held_out,) = split_episodes(list_episodes(data))[1]
    content = bytearray(held_out.path.read_bytes())
    middle = len(content) // 2  # within the frames, which come first and are most of it
    content[middle : middle + 100] = bytes(100)
    held_out.path.write_bytes(content)
    assert len(list_episodes(data)) == 3  # what a list looks at is in order
    command = ["trainvae.py", *SMALL_VAE, "--logdir", "exp", "--rootdir", data, "--epochs", 1]
    done = run_script(*command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"skipped 1 unusable episodes ({held_out.name}" in done.stderr
    assert "1 episodes to train on, 1 held out" in done.stdout
    command = ["trainmdrnn.py", *SMALL_RNN, "--logdir", "exp", "--rootdir", data, "--epochs", 1]
    done = run_script(*command, cwd=tmp_path)
    assert done.returncode == 0 and "1 episodes to train on, 1 held out" in done.stdout


def test_full_disk_while_a_checkpoint_is_written(tmp_path):
    """A limit on the size of files stands for the full disk."""
    data = write_dataset(tmp_path / "data", [20, 20])
    command = [*SMALL_VAE, "--logdir", "exp", "--rootdir", str(data), "--epochs"]
    run_script("trainvae.py", *command, 1, cwd=tmp_path).check_returncode()
    before = snapshot(tmp_path / "exp")
    config = Path("vae/config.json")  # of the latest call
    before.pop(config)
    done = subprocess.run(
        [sys.executable, str(ROOT / "trainvae.py"), *map(str, command), "2"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, 10**6)),
    )
    assert done.returncode == 2 and "could not be written" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
    after = snapshot(tmp_path / "exp")
    assert after.pop(config) and after == before
    again = run_script("trainvae.py", *command, 2, cwd=tmp_path)
    assert again.returncode == 0 and "continuing after epoch 1" in again.stdout


def test_full_disk_while_an_episode_is_written(tmp_path):
    command = [sys.executable, str(ROOT / "data/generation_script.py"), "--rollouts", "2"]
    done = subprocess.run(
        [*command, "--rootdir", "data", "--threads", "1"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (10**5, 10**5)),
    )
    assert done.returncode == 2 and "could not be written" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
    with pytest.raises(UserError, match="no usable episode"):
        list_episodes(tmp_path / "data")
    assert not list((tmp_path / "data").rglob("*.tmp"))


def test_a_candidate_with_a_nan_return_gets_the_worst_fitness(capsys):
    returns = np.array([[10.0, 20.0], [np.nan, 900.0], [-30.0, -10.0]])
    np.testing.assert_array_equal(finite_fitness(returns), [15, -20, -20])
    assert "1 candidates" in capsys.readouterr().out
    with pytest.raises(UserError, match="every candidate"):
        finite_fitness(np.full((2, 2), np.nan))


def test_nan_weights_end_in_one_line(tmp_path):
    """V whose weights are NaN: M's training stops at once, and keeps nothing broken."""
    data = write_dataset(tmp_path / "data", [30, 30])
    make_experiment(tmp_path / "exp")
    shutil.rmtree(tmp_path / "exp/mdrnn")
    state = load_checkpoint(tmp_path / "exp/vae/best.tar")
    state["state_dict"]["encoder.fc_mu.bias"][:] = np.nan
    save_checkpoint(tmp_path / "exp/vae/best.tar", state)
    done = run_script(
        "trainmdrnn.py", *SMALL_RNN, "--logdir", "exp", "--rootdir", data, cwd=tmp_path
    )
    assert done.returncode == 2 and "loss became nan" in done.stderr
    assert not (tmp_path / "exp/mdrnn/checkpoint.tar").exists()
