"""The scripts from the command line, at tiny sizes, as a user runs them."""

import json
import os
import re
import shlex
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
from conftest import ROOT, SHORT, make_experiment, run_script, write_dataset
from PIL import Image

from data.episodes import list_episodes, read_episode
from envs import simulator
from envs.evaluation import Judge, screen
from envs.rollouts import play
from envs.simulator import Simulator
from envs.tracks import track_seeds
from models.agent import Agent, AgentPolicy
from models.logdir import DEFAULT, load_agent, load_controller, stage_controller
from models.mdrnn import MDRNN
from models.vae import VAE, Encoder
from scripts.probe import Recording, explained, latents, memories, principal, situation
from utils.checkpoint import load_checkpoint, save_checkpoint
from utils.curves import Curves
from utils.devices import fast_precision
from utils.evolution import Evolution, Progress
from utils.scores import Scores, read_scores, write_scores

CPU = torch.device("cpu")

TINY = {
    "data/generation_script.py": ["--rollouts", "3", "--threads", "2", "--patience", "60"],
    "trainvae.py": ["--epochs", "1", "--batch-size", "64"],
    "trainmdrnn.py": ["--epochs", "1"],
    "traincontroller.py": [
        *("--pop-size", "3", "--n-samples", "1", "--max-generations", "2", "--sigma", "0.001"),
        *("--eval-every", "2", "--eval-rollouts", "1", "--patience", "5"),
    ],
    "test_controller.py": ["--episodes", "1"],
    "scripts/export.py": [],
    "scripts/compare_frames.py": ["--tracks", "1", "--steps", "20", "--processes", "1"],
}


def readme_commands():
    """All `python ...` command lines of the README and the documents, in their order."""
    names = ("README.md", "docs/architecture.md", "docs/speed.md", "docs/experiments.md")
    text = "\n".join((ROOT / name).read_text() for name in names)
    blocks = re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    commands = [shlex.split(line, comments=True) for line in lines]
    return [c[c.index("python") + 1 :] for c in commands if "python" in c]


def test_readme_commands_end_to_end(tmp_path):
    """Each of the README's commands works, one after the other, in the folder of a user.

    No server of the tests at first: each worker is spawned, and imports what it needs.
    The search starts from a controller that soon leaves the field, which spares minutes.
    """
    commands = readme_commands()
    logdir = make_experiment(tmp_path / "exp_dir")
    for stage in ("vae", "mdrnn"):
        shutil.rmtree(logdir / stage)
    assert {c[0] for c in commands} >= set(TINY)
    printed = {}
    for script, *arguments in commands:
        needs = {"--minutes", "--ray-address"} & set(arguments)
        if needs:  # of as long as you like; or a cluster, which other tests have
            assert needs.pop() in run_script(script, "--help", cwd=tmp_path).stdout
            continue
        elif script == "-m":  # of half an hour, or until Ctrl-C
            asked = run_script(script, *arguments, "--help", cwd=tmp_path)
            assert asked.returncode == 0 and "usage:" in asked.stdout, asked.stderr
            continue
        elif script in printed:  # its own start was tried: from here on without its imports
            again = run_script(script, *arguments, *TINY[script], cwd=tmp_path)
            assert again.returncode == 0, f"{script} {arguments}: {again.stderr}"
            continue
        else:
            command = [sys.executable, str(ROOT / script), *arguments, *TINY[script]]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f"{command}: {done.stdout} {done.stderr}"
        printed[script] = done.stdout
    assert len(list_episodes(tmp_path / "datasets" / "carracing")) == 3
    assert len(list_episodes(tmp_path / "datasets" / "round_2")) == 6
    for path in ("vae/best.tar", "mdrnn/best.tar", "ctrl/best.tar", "ctrl/checkpoint.tar"):
        load_checkpoint(logdir / path)
    assert load_checkpoint(logdir / "ctrl/checkpoint.tar")["state"]["generation"] == 2
    samples = {p.name for p in (logdir / "vae" / "samples").iterdir()}
    assert samples == {"sample_1.png", "reconstruction_1.png"}
    for stage in ("vae", "mdrnn", "ctrl"):
        assert list((logdir / stage / "tensorboard").glob("events.*"))
    assert (logdir / "controller.mp4").stat().st_size > 10_000
    assert re.search(
        r"return -?[\d.]+ \+- [\d.]+ .* over 1 episodes", printed["test_controller.py"]
    )


def generate(tmp_path, *arguments, rootdir="data", run=run_script):
    return run("data/generation_script.py", "--rootdir", rootdir, *arguments, cwd=tmp_path)


def test_generation_is_exact_and_reproducible_whatever_the_threads(tmp_path):
    brown = ["--rollouts", 3, "--seed", 5, "--patience", 100]  # of different length, and short
    generate(tmp_path, *brown, "--threads", 2).check_returncode()
    generate(tmp_path, *brown, "--threads", 1, rootdir="one")
    white = ["--seed", 6, "--policy", "white", "--patience", 300]
    generate(tmp_path, "--rollouts", 1, "--threads", 1, *white, rootdir="six")
    two, one = list_episodes(tmp_path / "data"), list_episodes(tmp_path / "one")
    assert [f.name for f in two] == [
        *("thread_0/rollout_0.npz", "thread_0/rollout_2.npz", "thread_1/rollout_1.npz")
    ]
    by_number = {f.path.name: read_episode(f.path) for f in one}
    assert len(by_number) == 3
    for file in two:
        for a, b in zip(read_episode(file.path), by_number[file.path.name], strict=True):
            np.testing.assert_array_equal(a, b)
    firsts = [e.observations[0].tobytes() for e in by_number.values()]
    assert len(set(firsts)) == 3  # each its own track
    (other,) = list_episodes(tmp_path / "six")
    assert read_episode(other.path).observations[0].tobytes() not in firsts
    # The mean step of the steering: 2/3 between two uniform numbers in [-1, 1]; a walk's is 0.11.
    steps = np.abs(np.diff(read_episode(other.path).actions[:, 0]))
    assert steps.mean() == pytest.approx(2 / 3, abs=0.1)


def test_generation_makes_only_what_is_missing_and_refuses_contradictions(run_here, tmp_path):
    short = ["--patience", 30]
    generate(tmp_path, "--rollouts", 1, "--threads", 1, *short).check_returncode()
    first = tmp_path / "data" / "thread_0" / "rollout_0.npz"
    before = first.read_bytes()
    time_before = first.stat().st_mtime_ns
    done = generate(tmp_path, "--rollouts", 2, "--threads", 3, *short)
    assert "1 episodes there, 1 of 2 to make" in done.stdout
    assert first.stat().st_mtime_ns == time_before
    assert len(list_episodes(tmp_path / "data")) == 2
    assert "0 of 2 to make" in generate(tmp_path, "--rollouts", 2, *short, run=run_here).stdout
    for option, value in (("--policy", "white"), ("--seed", "1"), ("--patience", "31")):
        refused = generate(tmp_path, "--rollouts", 2, *short, option, value, run=run_here)
        assert refused.returncode == 2 and f"{option} {value}" in refused.stderr
        assert len(refused.stderr.strip().splitlines()) == 1
    assert first.read_bytes() == before


def test_killed_generation_leaves_no_half_written_episode(tmp_path):
    command = [sys.executable, str(ROOT / "data/generation_script.py"), "--rollouts", "40"]
    command += ["--threads", "2", "--rootdir", str(tmp_path / "data"), "--patience", "100"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not list(tmp_path.glob("data/thread_*/*.npz")):
        time.sleep(0.05)
    process.kill()
    process.wait()
    time.sleep(2)  # the workers notice that their parent is gone
    there = list_episodes(tmp_path / "data")  # would warn of an unusable one
    assert there
    for file in there:
        assert len(read_episode(file.path).observations) == file.length
    count = len(list(tmp_path.glob("data/thread_*/*.npz")))
    time.sleep(1)
    assert len(list(tmp_path.glob("data/thread_*/*.npz"))) == count, "workers outlived their parent"


def test_training_continues_from_the_latest_epoch(run_here, tmp_path):
    data = write_dataset(tmp_path / "data", [40, 40, 40])
    options = ["--rootdir", data, "--logdir", "exp", "--device", "cpu", "--batch-size", 16]
    run = lambda *more: run_here("trainvae.py", *options, *more, cwd=tmp_path)  # noqa: E731
    run("--epochs", 1).check_returncode()
    second = run("--epochs", 2)
    assert "continuing after epoch 1" in second.stdout and "epoch 2:" in second.stdout
    assert "epoch 1:" not in second.stdout
    assert load_checkpoint(tmp_path / "exp/vae/checkpoint.tar")["epoch"] == 2
    contradiction = run("--epochs", 3, "--seed", 8)
    assert contradiction.returncode == 2 and "--seed 8" in contradiction.stderr
    afresh = run("--epochs", 1, "--noreload", "--nosamples")
    assert "kept as" in afresh.stdout and len(list((tmp_path / "exp").glob("vae-*"))) == 1


def test_the_learning_rate_falls_once_and_stays_low(run_here, tmp_path):
    """At the given epoch, also where a resumed training begins with it or goes on after it."""
    data = write_dataset(tmp_path / "data", [40, 40, 40])
    options = ["--rootdir", data, "--logdir", "exp", "--device", "cpu", "--nosamples"]
    options += ["--learning-rate", 0.0005, "--low-rate-from", 2]
    for epochs, rate in ((1, 0.0005), (2, 0.0001), (4, 0.0001)):
        done = run_here("trainvae.py", *options, "--epochs", epochs, cwd=tmp_path)
        assert done.returncode == 0 and f"learning rate {rate:g}" in done.stdout
        (group,) = load_checkpoint(tmp_path / "exp/vae/checkpoint.tar")["optimizer"]["param_groups"]
        assert group["lr"] == pytest.approx(rate)
    # A checkpoint without an optimizer that is past that epoch.
    model = load_checkpoint(tmp_path / "exp/vae/best.tar")["state_dict"]
    (tmp_path / "foreign/vae").mkdir(parents=True)
    torch.save({"epoch": 7, "state_dict": model}, tmp_path / "foreign/vae/best.tar")
    foreign = run_here("trainvae.py", *options, "--epochs", 8, "--logdir", "foreign", cwd=tmp_path)
    assert foreign.returncode == 0 and "learning rate 0.0001" in foreign.stdout
    other = run_here("trainvae.py", *options, "--epochs", 5, "--low-rate-from", 5, cwd=tmp_path)
    assert other.returncode == 2 and "--low-rate-from 5" in other.stderr


def test_the_learning_rate_of_m_falls_along_a_cosine_to_the_last_epoch(
    experiment, run_here, tmp_path
):
    """Resumed as well, where the epochs in all count."""
    data = write_dataset(tmp_path / "data", [40, 40, 40])
    shutil.rmtree(experiment / "mdrnn")
    options = ["--rootdir", data, "--logdir", experiment, "--device", "cpu"]
    options += ["--learning-rate", 0.002]
    rates = []
    for epochs in (1, 3):
        done = run_here("trainmdrnn.py", *options, "--epochs", epochs, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        rates += re.findall(r"learning rate (\S+)", done.stdout)
        (group,) = load_checkpoint(experiment / "mdrnn/checkpoint.tar")["optimizer"]["param_groups"]
        assert group["lr"] == pytest.approx(float(rates[-1]))
    assert rates == ["0.002", "0.0015", "0.0005"]
    other = run_here("trainmdrnn.py", *options[:-1], 0.001, "--epochs", 4, cwd=tmp_path)
    assert other.returncode == 2 and "--learning-rate 0.001" in other.stderr


def test_two_episodes_are_enough_and_one_is_not(run_here, tmp_path):
    data = write_dataset(tmp_path / "data", [40, 40])
    options = ["--rootdir", data, "--logdir", "exp", "--epochs", 1, "--nosamples"]
    run_here("trainvae.py", *options, cwd=tmp_path).check_returncode()
    mdrnn = run_here("trainmdrnn.py", *options[:-1], "--include_reward", cwd=tmp_path)
    assert mdrnn.returncode == 0 and re.search(r"bce [\d.]+, mse [\d.]+\)", mdrnn.stdout)
    without = run_here("trainmdrnn.py", *options[:-1], cwd=tmp_path)
    assert without.returncode == 2 and "include_reward" in without.stderr
    shutil.rmtree(data / "thread_1")
    done = run_here("trainvae.py", *options, "--noreload", cwd=tmp_path)
    assert done.returncode == 2 and "at least two" in done.stderr


def test_foreign_checkpoints_load_in_every_script(experiment, run_here, tmp_path):
    """Checkpoints with the public tensor names, made by another program."""
    data = write_dataset(tmp_path / "data", [40, 40])
    before = load_checkpoint(experiment / "vae/best.tar")
    common = ["--logdir", experiment, "--device", "cpu"]
    vae = run_here("trainvae.py", *common, "--rootdir", data, "--epochs", 8, cwd=tmp_path)
    assert vae.returncode == 0 and "weights of epoch 7" in vae.stdout
    # The 35.5 of other episodes is not what is to be beaten: one epoch helps random weights here.
    after = load_checkpoint(experiment / "vae/best.tar")
    assert after["epoch"] == 8 and not torch.equal(
        before["state_dict"]["decoder.fc1.weight"], after["state_dict"]["decoder.fc1.weight"]
    )
    rnn = run_here("trainmdrnn.py", *common, "--rootdir", data, "--epochs", 8, cwd=tmp_path)
    assert rnn.returncode == 0 and "weights of epoch 7" in rnn.stdout
    controller = run_script(
        "traincontroller.py", *common, *TINY["traincontroller.py"], cwd=tmp_path
    )
    assert controller.returncode == 0 and "evaluating it again" in controller.stdout
    assert re.search(r"best.tar: -?\d+.\d \+- \d+.\d on \d+ tracks", controller.stdout)
    test = run_script("test_controller.py", *common, "--no-render", cwd=tmp_path)
    assert test.returncode == 0 and "over 1 episodes, seed 0" in test.stdout


@pytest.mark.parametrize(
    "script, command",
    [
        ("trainmdrnn.py", "trainvae.py"),
        ("traincontroller.py", "trainvae.py"),
        ("test_controller.py", "trainvae.py"),
    ],
)
def test_a_missing_stage_names_its_command(run_here, script, command, tmp_path):
    done = run_here(script, "--logdir", "exp", cwd=tmp_path)
    assert done.returncode == 2
    assert f"run `python {command} --logdir exp` first" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_the_trained_controller_drives_for_a_second_round_of_data(experiment, run_here, tmp_path):
    drive = ["--policy", "controller", "--logdir", experiment, "--rollouts", 2, "--threads", 1]
    refused = generate(tmp_path, *drive[:2], run=run_here)
    assert refused.returncode == 2 and "--logdir" in refused.stderr
    generate(tmp_path, *drive, "--noise", 0).check_returncode()
    assert len(list_episodes(tmp_path / "data")) == 2
    varied = generate(tmp_path, *drive, "--noise", 0.1, run=run_here)
    assert varied.returncode == 2 and "--noise 0.1" in varied.stderr
    another = generate(tmp_path, *drive[:2], "--rollouts", 2, "--policy", "brown", run=run_here)
    assert another.returncode == 2 and "--policy brown" in another.stderr


def test_patience_ends_an_episode_of_the_data_where_the_tiles_end(run_here, tmp_path):
    make = ["--rollouts", 2, "--threads", 1, "--seed", 3]
    generate(tmp_path, *make, rootdir="whole").check_returncode()
    generate(tmp_path, *make, "--patience", 30).check_returncode()
    for file in list_episodes(tmp_path / "whole"):
        whole, ended = read_episode(file.path), read_episode(tmp_path / "data" / file.name)
        tiles = np.flatnonzero(whole.rewards > 0)  # the first step lies on a tile
        gap = np.flatnonzero(np.diff([*tiles, 2000]) > 30)[0]
        assert len(ended.rewards) == tiles[gap] + 1 + 30 < len(whole.rewards)
        for part, all_of_it in zip(ended, whole, strict=True):
            np.testing.assert_array_equal(part, all_of_it[: len(part)])
    refused = generate(tmp_path, *make, run=run_here)
    assert refused.returncode == 2 and "made with --patience 30" in refused.stderr
    note = tmp_path / "whole" / "generation.json"  # as it was before there was a --patience
    note.write_text(
        json.dumps({k: v for k, v in json.loads(note.read_text()).items() if k != "patience"})
    )
    assert generate(tmp_path, *make, rootdir="whole", run=run_here).returncode == 0
    assert generate(tmp_path, *make, "--patience", 9, rootdir="whole", run=run_here).returncode == 2


def test_a_controller_that_acts_nan_makes_no_data_and_it_is_said(experiment, tmp_path):
    best = load_checkpoint(experiment / "ctrl/best.tar")
    best["state_dict"]["fc.bias"][:] = np.nan
    save_checkpoint(experiment / "ctrl/best.tar", best)
    drive = ["--policy", "controller", "--logdir", experiment, "--rollouts", 2, "--threads", 1]
    done = generate(tmp_path, *drive)
    assert done.returncode == 2 and "2 of 2 episodes ended in actions" in done.stderr


def test_m_of_another_vae_is_refused_before_anything_is_encoded(run_here, experiment, tmp_path):
    data = write_dataset(tmp_path / "data", [40, 40])
    shutil.rmtree(experiment / "mdrnn")
    command = ["trainmdrnn.py", "--logdir", experiment, "--rootdir", data, "--epochs", 1]
    run_here(*command, cwd=tmp_path).check_returncode()
    (latents,) = (experiment / "latents").iterdir()
    state = load_checkpoint(experiment / "vae/best.tar")
    state["state_dict"]["encoder.fc_mu.bias"] += 1
    save_checkpoint(experiment / "vae/best.tar", state)
    done = run_here(*command, cwd=tmp_path)
    assert done.returncode == 2 and "the VAE is not the one" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1 and latents.is_dir()
    assert run_here(*command, "--noreload", cwd=tmp_path).returncode == 0
    assert not latents.exists()


def test_a_variant_of_the_controller_is_trained_resumed_and_tested(run_here, experiment, tmp_path):
    (experiment / "mdrnn/best.tar").unlink()  # it needs none
    shutil.rmtree(experiment / "ctrl")
    common = ["--logdir", experiment, "--pop-size", 3, "--patience", 5, "--seed", 4]
    common += ["--n-samples", 1, "--eval-every", 2, "--eval-rollouts", 1]
    options = [*common, "--memory", "random", "--actions", "squash"]

    def train(*more, run=run_script):
        return run("traincontroller.py", *options, *more, cwd=tmp_path)

    first = train("--max-generations", 1)
    assert first.returncode == 0
    assert (experiment / "ctrl/best.tar").exists()  # the last generation is evaluated in any case
    state = load_checkpoint(experiment / "ctrl/checkpoint.tar")
    mean = stage_controller(experiment, "ctrl", last=True)[1].flat_parameters()
    torch.testing.assert_close(state["cma"]["average"].float(), mean)  # of one generation
    train("--max-generations", 2).check_returncode()
    assert train("--actions", "clip", run=run_here).returncode == 2

    test = ["test_controller.py", *common[:2], "--no-render"]
    done = run_script(*test, cwd=tmp_path)
    assert done.returncode == 0 and "memory random" in done.stdout
    assert "actions squash" in done.stdout and "note:" not in done.stdout
    best = load_checkpoint(experiment / "ctrl/best.tar")
    best["conditions"]["models"] = "another"
    best["driving"]["memory"] = "none"
    best["state_dict"]["fc.weight"] = best["state_dict"]["fc.weight"][:, :32]
    save_checkpoint(experiment / "ctrl/best.tar", best)
    done = run_script(*test, cwd=tmp_path)
    assert done.returncode == 0 and "memory none" in done.stdout
    assert run_script(*test, "--untrained", cwd=tmp_path).returncode == 0
    # In a process of its own, which finds the repository's modules by itself.
    export = [sys.executable, ROOT / "scripts/export.py", *common[:2], "--to", "given"]
    subprocess.run(export, cwd=tmp_path, check=True)
    assert {p.name for p in (tmp_path / "given").iterdir()} == {"vae", "ctrl"}
    assert "not those that this controller was trained with" in done.stdout


def test_evaluations_run_in_full_whatever_the_patience(tmp_path):
    class Pool:
        def __len__(self):
            return 1

        def run(self, units, reports, shared):
            self.seen = {unit.patience for unit in units}
            for i, unit in enumerate(units):
                yield i, (np.zeros(len(unit.seeds)), np.ones(len(unit.seeds), np.int64))

    pool = Pool()
    judge = Judge(tmp_path / "best.tar", pool, 2, DEFAULT, "")
    means, steps = judge.evaluate({"mean": np.zeros(867), "other": np.ones(867)}, 1)
    assert pool.seen == {0} and judge.best == 0 and steps == 4 and means.tolist() == [0, 0]


def test_a_controller_of_z_alone_is_trained_resumed_and_driven(experiment, tmp_path, monkeypatch):
    shutil.rmtree(experiment / "ctrl")
    command = ["traincontroller.py", "--logdir", experiment, "--memory", "none", "--patience", 5]
    command += ["--pop-size", 3, "--n-samples", 1, "--eval-rollouts", 2]
    for generations in (1, 2):
        done = run_script(*command, "--max-generations", generations, cwd=tmp_path)
        assert done.returncode == 0
    assert "continuing after generation 1" in done.stdout
    controller, driving, best = load_controller(experiment / "ctrl/best.tar")
    parameters = controller.flat_parameters()
    assert parameters.shape == (99,)
    agent = load_agent(experiment, CPU, fast_precision(CPU), driving)
    policy = AgentPolicy(agent, parameters.expand(2, -1))
    monkeypatch.setattr(simulator, "MAX_STEPS", SHORT)
    returns, _ = play(Simulator(track_seeds("evaluate", 2)), 2, 2, policy)
    # Rounding differs with the size of a batch, which may cost a tile.
    assert best["reward"] == pytest.approx(returns.mean(), abs=5)


def test_what_was_begun_on_envpool_goes_on_and_it_is_said(experiment, run_here, tmp_path):
    """A training and a data set as earlier versions left them."""
    shutil.rmtree(experiment / "ctrl")
    command = ["traincontroller.py", "--logdir", experiment, "--memory", "none", "--patience", 5]
    command += ["--pop-size", 3, "--n-samples", 1, "--eval-rollouts", 1]
    assert run_script(*command, "--max-generations", 1, cwd=tmp_path).returncode == 0
    paths = [experiment / "ctrl" / name for name in ("checkpoint.tar", "best.tar")]
    training, best = (load_checkpoint(path) for path in paths)
    for name, mentioned in (("gymnasium", False), ("envpool", True)):
        training["options"]["simulator"] = best["conditions"]["simulator"] = name
        save_checkpoint(paths[0], training)
        save_checkpoint(paths[1], best)
        again = run_script(*command, "--max-generations", 1, cwd=tmp_path)
        assert again.returncode == 0
        assert again.stdout.count("begun on EnvPool, which is no longer used") == mentioned
        # What was scored there is scored again; the evaluation's tracks have the same return.
        assert ("scored under other conditions" in again.stdout) == mentioned
        assert load_checkpoint(paths[1])["reward"] == pytest.approx(best["reward"], abs=5)
    more = run_script(*command, "--max-generations", 2, cwd=tmp_path)
    assert more.returncode == 0 and "generation 2: return mean" in more.stdout
    assert len(load_checkpoint(paths[0])["state"]["history"]) == 2  # nothing is lost

    short = ["--patience", 30, "--threads", 1]
    generate(tmp_path, "--rollouts", 1, *short).check_returncode()
    note = tmp_path / "data" / "generation.json"
    made = json.loads(note.read_text())
    note.write_text(json.dumps(made | {"simulator": "envpool"}))
    before = (tmp_path / "data/thread_0/rollout_0.npz").read_bytes()
    done = generate(tmp_path, "--rollouts", 2, *short)
    assert done.returncode == 0 and "begun on EnvPool" in done.stdout
    assert len(list_episodes(tmp_path / "data")) == 2
    assert (tmp_path / "data/thread_0/rollout_0.npz").read_bytes() == before
    note.write_text(json.dumps(made | {"simulator": "gymnasium"}))
    assert "EnvPool" not in generate(tmp_path, "--rollouts", 2, *short, run=run_here).stdout


@pytest.mark.parametrize("n, hard, others", [(3, [4, 9], [0]), (1, [4], []), (4, [4, 9], [0, 1])])
def test_half_of_the_screened_tracks_are_those_the_mean_returns_least_on(n, hard, others, tmp_path):
    drawn = track_seeds("train", 10, 7, 5)

    class Pool:
        def __len__(self):
            return 2

        def run(self, units, reports, shared):
            for unit in units:
                assert unit.patience == 100
                assert (unit.complete(shared).parameters == 3).all()
                at = [drawn.index(seed) for seed in unit.seeds]
                returns = [{4: -20.0, 9: 500.0, 2: np.nan}.get(i, 900.0 - i) for i in at]
                yield unit.number, (np.array(returns), np.full(len(at), 100))

    tracks, mean, steps = screen(Pool(), np.full(867, 3.0), drawn, n, 100)
    assert np.isnan(mean)
    assert tracks == [drawn[i] for i in hard + others] and steps == 1000


def test_a_training_refines_from_its_middle_and_goes_back_to_searching(
    experiment, run_here, tmp_path
):
    shutil.rmtree(experiment / "ctrl")
    command = ["traincontroller.py", "--logdir", experiment, "--memory", "none", "--patience", 5]
    command += ["--pop-size", 3, "--n-samples", 1, "--eval-rollouts", 1, "--eval-every", 9]
    assert run_script(*command, "--max-generations", 1, cwd=tmp_path).returncode == 0
    command += ["--refine-screen", 4]
    done = run_script(*command, "--refine-from", 3, "--max-generations", 3, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    before, _, after = done.stdout.partition("generation 3 and on: refine in ")
    assert "\ngeneration 2:" in before and "\ngeneration 3:" in after
    assert "screening" not in before and "on 4 tracks" in after
    again = run_script(*command, "--max-generations", 4, cwd=tmp_path)
    assert again.returncode == 0 and "refine in" not in again.stdout
    state = load_checkpoint(experiment / "ctrl/checkpoint.tar")
    assert state["options"]["refine-from"] == 3 and state["cma"]["phase"] == "refine"
    assert state["state"]["generation"] == 4
    # The mean of these steps is a controller that can be scored.
    _, last, driving, about = stage_controller(experiment, "ctrl", last=True)
    evolution = Evolution(np.zeros(99), 0.1, 3, 0)
    evolution.load_state_dict(state["cma"])
    np.testing.assert_array_equal(last.flat_parameters(), evolution.mean.astype(np.float32))
    assert driving.memory == "none" and about["epoch"] == 4
    test = ["test_controller.py", "--logdir", experiment, "--no-render", "--last"]
    scored = run_script(*test, cwd=tmp_path)
    assert scored.returncode == 0 and "checkpoint.tar, generation 4" in scored.stdout
    assert "note:" not in scored.stdout
    assert run_here(*test, "--untrained", cwd=tmp_path).returncode == 2
    (experiment / "ctrl/checkpoint.tar").rename(tmp_path / "checkpoint.tar")
    without = run_here(*test, cwd=tmp_path)
    assert without.returncode == 2 and "leave out --last" in without.stderr
    (tmp_path / "checkpoint.tar").rename(experiment / "ctrl/checkpoint.tar")
    # Switched off, it goes on from the same mean.
    off = run_script(*command, "--refine-from", 0, "--max-generations", 5, cwd=tmp_path)
    assert off.returncode == 0 and "generation 5 and on: search in " in off.stdout
    state = load_checkpoint(experiment / "ctrl/checkpoint.tar")
    assert state["options"]["refine-from"] == 0 and state["cma"]["phase"] == "search"
    assert len(state["state"]["history"]) == 5


def test_controller_stops_at_the_target(experiment, tmp_path):
    done = run_script(
        "traincontroller.py",
        *("--logdir", experiment, "--target-return", -500, "--pop-size", 3, "--n-samples", 1),
        *("--eval-rollouts", 1, "--eval-every", 1),
        cwd=tmp_path,
    )
    assert done.returncode == 0 and "target reached" in done.stdout


def test_controller_stops_after_the_generation_that_reaches_its_steps(experiment, tmp_path):
    done = run_script(
        "traincontroller.py",
        *("--logdir", experiment, "--max-steps", 150, "--pop-size", 3, "--n-samples", 1),
        *("--eval-rollouts", 1, "--eval-every", 100, "--patience", 50),
        cwd=tmp_path,
    )
    state = load_checkpoint(experiment / "ctrl" / "checkpoint.tar")["state"]
    before = [steps for _, steps, *_ in state["history"]][:-1]
    assert done.returncode == 0 and state["steps"] >= 150 and all(s < 150 for s in before)
    assert [row[0] for row in state["evaluations"]] == [state["generation"]]


def alive(process):
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_ctrl_c_ends_cleanly_and_keeps_the_last_generation(experiment, tmp_path):
    shutil.rmtree(experiment / "ctrl")
    command = [sys.executable, str(ROOT / "traincontroller.py"), "--logdir", str(experiment)]
    command += ["--pop-size", "4", "--n-samples", "1", "--eval-every", "1000"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell that runs the tests in the background ignores SIGINT, and we would inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    for line in process.stdout:
        if line.startswith("generation 1:"):
            break
    time.sleep(1)
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) >= 2
    os.killpg(process.pid, signal.SIGINT)  # to the whole group, as a terminal does it
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in errors
    deadline = time.monotonic() + 10  # multiprocessing's own tracker takes a moment
    while any(alive(child) for child in children) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(alive(child) for child in children)
    state = load_checkpoint(experiment / "ctrl/checkpoint.tar")["state"]
    assert state["generation"] >= 1


def test_contradictory_view_options_are_refused(run_here, experiment, tmp_path):
    for options, word in (
        (["--video", "a.mp4", "--no-render"], "--no-render"),
        (["--video", "a.avi"], ".mp4 or .gif"),
        (["--device", "cuda:99"], "cuda:99"),
        (["--episodes", "0"], "at least 1"),
    ):
        done = run_here("test_controller.py", "--logdir", experiment, *options, cwd=tmp_path)
        assert done.returncode == 2 and word in done.stderr, options
        assert "Traceback" not in done.stderr


def test_other_sizes_are_stored_and_found_again(run_here, tmp_path):
    """A latent of 5 numbers and a hidden state of 7, through all stages, export and resuming."""
    write_dataset(tmp_path / "data", [30, 30, 30])
    common = ["--logdir", "exp", "--device", "cpu"]
    data = ["--rootdir", "data", "--batch-size", 8, "--epochs"]
    vae = ["trainvae.py", *common, *data, 1, "--latent-size", 5]
    mdrnn = ["trainmdrnn.py", *common, *data, 1, "--seq-len", 8, "--hidden-size", 7]
    ctrl = ["traincontroller.py", *common, "--pop-size", 3, "--n-samples", 1, "--patience", 5]
    ctrl += ["--eval-rollouts", 1, "--max-generations"]
    for command in (vae, mdrnn):
        assert run_here(*command, cwd=tmp_path).returncode == 0
        other = run_here(*command[:-1], 6, cwd=tmp_path)
        assert other.returncode == 2 and f"{command[-2]} 6: the training in" in other.stderr
    for _ in range(2):
        done = run_script(*ctrl, 1, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert "continuing after generation 1" in done.stdout
    controller, driving, _ = load_controller(tmp_path / "exp/ctrl/best.tar")
    assert controller.fc.weight.shape == (3, 12)
    assert (driving.latent_size, driving.hidden_size) == (5, 7)

    test = ["test_controller.py", *common]
    shown = run_script(*test, "--video", "a.mp4", "--json", "scores.json", cwd=tmp_path)
    assert shown.returncode == 0 and (tmp_path / "a.mp4").stat().st_size > 10_000
    scores = read_scores(tmp_path / "scores.json")
    assert scores.tracks == track_seeds("test", 1, 0) and len(scores.returns) == 1
    assert scores.summary() in shown.stdout
    assert torch.__version__.startswith(scores.versions["torch"])
    # Each stage says how it was made, and for which data.
    for stage, option, value in (("vae", "latent_size", 5), ("mdrnn", "hidden_size", 7)):
        config = json.loads((tmp_path / "exp" / stage / "config.json").read_text())
        assert config["options"][option] == value and "2 episodes" in config["data"]["to train on"]
        assert config["command"].startswith("python ") and "--logdir exp" in config["command"]

    # Another V is refused by what was trained with this one.
    state = {"state_dict": VAE().state_dict()}
    save_checkpoint(tmp_path / "exp/vae/best.tar", state)
    refused = run_here(*test, "--no-render", cwd=tmp_path)
    assert refused.returncode == 2 and "its V has --latent-size 32" in refused.stderr


def test_evaluations_take_a_quarter_of_the_steps():
    judge = Judge(Path("best.tar"), None, 100, DEFAULT, "")
    progress, of_one = Progress(), 280_000  # at most 300,000
    for generation in range(1, 200):
        progress.generation, progress.steps = generation, progress.steps + 60_000
        if judge.is_due(progress, None):
            progress.evaluation_steps += of_one
        whole = progress.steps + progress.evaluation_steps
        assert progress.evaluation_steps <= whole / 4
    assert progress.evaluation_steps > whole / 5


def test_comparing_controllers_pairs_their_tracks(run_here, tmp_path):
    """Differences 10, 20, 30 on tracks 2 to 4: mean 20, deviation 10, error 10 / sqrt(3)."""

    def write(name, returns):
        values, tracks = list(returns.values()), list(returns)
        write_scores(tmp_path / name, Scores(values, tracks, 0, "a-b", {}))

    def compare():
        return run_here("scripts/compare.py", "a.json", "b.json", cwd=tmp_path)

    write("a.json", {k: 100.0 * k for k in (1, 2, 3, 4)})
    write("b.json", {k: 100.0 * k + 10 * (k - 1) for k in (2, 3, 4, 5)})
    done = compare()
    assert "difference 20.0, standard error 5.8; track by track +- 10.0" in done.stdout
    assert "a difference of 10 is two standard errors on 4 tracks" in done.stdout
    write("b.json", {2: 1.0, 3: np.nan})
    assert compare().returncode == 2 and "b.json has returns that are NaN" in compare().stderr
    write("b.json", {7: 1.0, 8: 2.0})
    assert compare().returncode == 2 and "two tracks in common" in compare().stderr
    for text in ("nothing\n", "[1]", '{"returns": [1.0]}'):
        (tmp_path / "a.json").write_text(text)
        assert compare().returncode == 2 and "a.json holds no scores" in compare().stderr
    write("a.json", {})
    assert compare().returncode == 2 and "a track for each return" in compare().stderr


def test_the_probe_finds_what_is_linear_and_nothing_else():
    generator = np.random.default_rng(0)
    inputs = [generator.standard_normal((500, 6)) for _ in range(8)]
    line = generator.standard_normal(6)
    targets = []
    for x in inputs:
        noise = generator.standard_normal(500) * np.linalg.norm(line)  # as much as the line's own
        columns = (x @ line + 3, x @ line + noise, noise, x[:, 0] ** 2)
        targets.append(np.stack(columns, axis=1))
    exact, half, none, square = explained(inputs, targets)
    assert exact == pytest.approx(1, abs=1e-4)
    assert half == pytest.approx(0.5, abs=0.05)
    assert none == pytest.approx(0, abs=0.02) and square == pytest.approx(0, abs=0.02)


def test_the_probes_principal_components_are_those_that_vary_most():
    generator = np.random.default_rng(0)
    parts = np.linalg.qr(generator.standard_normal((400, 5)))[0]
    parts = parts - parts.mean(0)
    scales = np.array([3.0, 10.0, 1.0, 0.1, 0.3])
    axes = np.linalg.qr(generator.standard_normal((5, 5)))[0]
    seen = parts * scales @ axes.T
    first, share = principal([seen[:100], seen[100:]], 2)
    assert [len(x) for x in first] == [100, 300]
    assert share == pytest.approx(109 / 110.1, abs=0.002)
    # They hold the two largest parts and nothing of the others.
    known = parts[:, :2]
    fit = np.linalg.lstsq(np.concatenate(first), known, rcond=None)[0]
    np.testing.assert_allclose(np.concatenate(first) @ fit, known, atol=0.02)


def test_the_probe_reads_the_simulator():
    """A car that is put somewhere, and bends from the road's points instead of its angles."""
    simulator = Simulator([3])
    simulator.reset(np.array([0]))
    env = simulator.unwrapped(0)
    x, y = np.array(env.track)[:, 2:].T
    directions = np.arctan2(np.roll(y, -1) - np.roll(y, 1), np.roll(x, -1) - np.roll(x, 1))
    hull = env.car.hull
    for tile in (0, 60, 150):
        forward = np.array([np.cos(directions[tile]), np.sin(directions[tile])])
        right = np.array([forward[1], -forward[0]])
        hull.position = (np.array([x[tile], y[tile]]) + 3 * right).tolist()
        hull.angle = directions[tile] - np.pi / 2 + 0.2  # Box2D's cars look along their y axis
        hull.linearVelocity, hull.angularVelocity = (3.0, -4.0), 0.7
        now = situation(env)
        assert now.offset == pytest.approx(3, abs=0.3)
        assert now.heading == pytest.approx(np.sin(0.2), abs=0.08)
        assert (now.speed, now.rotation) == pytest.approx((5, 0.7), abs=1e-4)
        for tiles, bend in ((4, now.bend_4), (8, now.bend_8), (14, now.bend_14)):
            turn = directions[(tile + tiles) % len(x)] - directions[tile]
            assert bend == pytest.approx(np.sin(turn), abs=0.15)
    simulator.close()


def test_the_probe_remembers_as_the_agent_does():
    torch.manual_seed(0)
    encoder, mdrnn = Encoder().eval(), MDRNN()
    generator = np.random.default_rng(0)
    actions = generator.uniform(0, 1, (6, 3)).astype(np.float32)
    frames = generator.integers(0, 256, (6, 64, 64, 3), np.uint8)
    episode = Recording(actions, frames, np.zeros((6, 7)), np.ones(6, bool))
    agent = Agent(encoder, mdrnn, CPU, torch.float32)
    with torch.inference_mode():
        mu = latents(encoder, episode)
        h, c = agent.initial_state(1)
        expected = [h]
        for before, action in zip(frames[:-1], actions[1:], strict=True):
            seen = agent.observe(torch.from_numpy(before)[None])
            h, c = mdrnn.step(torch.from_numpy(action)[None], seen, h, c)
            expected.append(h)
        assert torch.allclose(memories(mdrnn, episode, mu), torch.cat(expected), atol=1e-5)
    assert torch.cat(expected)[1:].abs().mean() > 0.01


def test_the_probe_needs_a_v_and_enough_episodes(run_here, experiment, tmp_path):
    few = run_here("scripts/probe.py", "--logdir", experiment, "--episodes", 3, cwd=ROOT)
    assert few.returncode == 2 and "--episodes 3: at least 4" in few.stderr
    missing = run_here("scripts/probe.py", "--logdir", tmp_path, cwd=ROOT)
    assert missing.returncode == 2 and "trainvae.py" in missing.stderr
    assert "Traceback" not in few.stderr + missing.stderr


def test_an_exported_logdir_drives_and_holds_weights_alone(run_here, experiment, tmp_path):
    (experiment / "vae/config.json").write_text('{"command": "x"}')
    done = run_here("scripts/export.py", "--logdir", experiment, "--to", "given", cwd=tmp_path)
    assert done.returncode == 0
    for stage in ("vae", "mdrnn", "ctrl"):
        before, after = (
            load_checkpoint(folder / stage / "best.tar")
            for folder in (experiment, tmp_path / "given")
        )
        assert set(after) <= {"epoch", "precision", "reward", "state_dict", "driving"}
        for name, tensor in before["state_dict"].items():
            assert torch.equal(tensor, after["state_dict"][name])
    load_agent(tmp_path / "given", CPU, torch.float32)
    assert json.loads((tmp_path / "given/vae/config.json").read_text()) == {"command": "x"}

    # What is there is not overwritten, unless this is asked for.
    before = (tmp_path / "given/ctrl/best.tar").read_bytes()
    command = ["scripts/export.py", "--logdir", experiment, "--to", "given"]
    state = load_checkpoint(experiment / "ctrl/best.tar")
    save_checkpoint(experiment / "ctrl/best.tar", state | {"epoch": 77})
    done = run_here(*command, cwd=tmp_path)
    assert done.returncode == 2 and "is there" in done.stderr
    assert (tmp_path / "given/ctrl/best.tar").read_bytes() == before
    assert run_here(*command, "--overwrite", cwd=tmp_path).returncode == 0
    assert load_checkpoint(tmp_path / "given/ctrl/best.tar")["epoch"] == 77

    (experiment / "ctrl/best.tar").unlink()
    done = run_here("scripts/export.py", "--logdir", experiment, "--to", "none", cwd=tmp_path)
    assert done.returncode == 2 and "run `python traincontroller.py" in done.stderr
    assert not (tmp_path / "none").exists()


def test_learning_curve_needs_a_history_and_draws_it(run_here, tmp_path):
    def draw():
        command = ["scripts/learning_curve.py", "--logdir", "exp", "--to", "docs/curve.png"]
        return run_here(*command, cwd=tmp_path)

    state = {"history": [], "evaluations": []}
    save_checkpoint(tmp_path / "exp/ctrl/checkpoint.tar", {"state": state})
    assert draw().returncode == 2 and "has no history" in draw().stderr
    wrong = run_here(
        "scripts/learning_curve.py", "--logdir", "exp", "--to", "curve.foo", cwd=tmp_path
    )
    assert wrong.returncode == 2 and ".png, .svg or .pdf" in wrong.stderr
    state["history"] = [[1.0, 3000.0, 2.0, -50.0, 10.0], [2.0, 6000.0, 4.0, 20.0, 80.0]]
    state["evaluations"] = [[2.0, 6000.0, 4.0, 100.0, 60.0, 80.0]]
    save_checkpoint(tmp_path / "exp/ctrl/checkpoint.tar", {"state": state})
    assert draw().returncode == 0
    with Image.open(tmp_path / "docs/curve.png") as picture:
        assert picture.size == (1000, 400)


def test_bursts_are_refused_where_they_cannot_be(run_here, experiment, tmp_path):
    def generate(*options):
        command = ["data/generation_script.py", "--rootdir", "data", "--rollouts", 1]
        done = run_here(*command, "--bursts", 0.3, *options, cwd=tmp_path)
        assert done.returncode == 2 and not (tmp_path / "data" / "generation.json").exists()
        return done.stderr

    assert "--bursts is for --policy controller" in generate()
    path = experiment / "ctrl" / "best.tar"
    squashed = {"memory": "trained", "memory_seed": 0, "actions": "squash"}
    save_checkpoint(path, load_checkpoint(path) | {"driving": squashed})
    assert "has squash" in generate("--policy", "controller", "--logdir", experiment)


def test_how_fast_reads_minutes_since_the_beginning(run_here, tmp_path):
    def draw():
        return run_here("scripts/how_fast.py", "--logdir", "exp", "--to", "fast.png", cwd=tmp_path)

    begun = tmp_path / "exp" / "begun"
    assert draw().returncode == 2 and "begun is missing" in draw().stderr
    begun.parent.mkdir()
    begun.touch()
    os.utime(begun, (time.time() - 12 * 60,) * 2)
    assert draw().returncode == 2 and "no curves" in draw().stderr
    curves = Curves(begun.parent / "round_1" / "ctrl" / "tensorboard", 1)
    curves.add({"return/mean": 300.0, "evaluation/mean": 500.0}, 1)
    curves.close()
    done = draw()
    assert done.returncode == 0, done.stderr
    expected = "exp: 5 min -, 10 min -, 20 min 500, 40 min 500, 60 min 500"
    assert expected in done.stdout and "mean: -, -, 300, 300, 300" in done.stdout
    with Image.open(tmp_path / "fast.png") as picture:
        assert picture.size == (800, 400)


def test_ablation_table_adds_the_finished_runs(run_here, tmp_path):
    """Runs of two machines come together in one file; a run without a score is left out."""

    def run(machine, name, steps, returns, seed=1):
        folder = tmp_path / machine / "ablations" / name
        make_experiment(folder)
        state = {"steps": steps, "generation": 3}
        save_checkpoint(folder / "ctrl" / "checkpoint.tar", {"state": state})
        if returns:
            write_scores(folder / "test.json", Scores(returns, [7, 8], seed, "a-b", {}))

    def table(machine):
        return run_here(
            *("scripts/ablation_table.py", "--logdir", machine, "--results", "all.json"),
            cwd=tmp_path,
        )

    assert table("a").returncode == 2 and "a has no ablations" in table("a").stderr
    run("a", "base-0", 2_000_000, [800.0, 900.0])
    run("a", "no_m-0", 2_010_000, [600.0, 600.0])
    run("a", "no_m-1", 1_000_000, [])
    assert table("a").returncode == 0
    assert '\n"base-0": {"steps": 2000000, ' in (tmp_path / "all.json").read_text()
    run("b", "base-1", 2_020_000, [880.0, 880.0])
    done = table("b")
    rows = done.stdout.splitlines()
    base = "| base | 2.00 M, 2.02 M | 3, 3 | 850.0 +- 50.0, 880.0 +- 0.0 | 865.0 | 906 +- 21; 860"
    assert rows[2].startswith(base)
    assert rows[3].startswith("| no m | 2.01 M | 3 | 600.0 +- 0.0 | 600.0 | 632 +- 251")
    assert rows[-1].endswith("standard deviation 21.2 (over 1 choices)")  # 30 / sqrt(2)

    # The longer run of one name counts, and none whose score is older than its last steps.
    run("d", "base-0", 1_990_000, [1.0, 1.0])
    assert table("d").stdout == done.stdout
    run("d", "base-0", 2_030_000, [700.0, 700.0])
    checkpoint = tmp_path / "d" / "ablations" / "base-0" / "ctrl" / "checkpoint.tar"
    later = time.time() + 60
    os.utime(checkpoint, (later, later))
    assert table("d").stdout == done.stdout and "left out" in table("d").stderr
    os.utime(checkpoint, (0, 0))
    assert "| base | 2.03 M, 2.02 M | 3, 3 | 700.0 +- 0.0, 880.0 +- 0.0 |" in table("d").stdout

    kept = (tmp_path / "all.json").read_text()
    run("c", "base-2", 2_000_000, [880.0, 880.0], 2)
    assert table("c").returncode == 2 and "different tracks" in table("c").stderr
    run("e", "base-0", 3_000_000, [880.0, 880.0])
    save_checkpoint(
        tmp_path / "e" / "ablations" / "base-0" / "vae" / "best.tar",
        {"state_dict": VAE().state_dict()},
    )
    assert table("e").returncode == 2 and "different V and M" in table("e").stderr
    (tmp_path / "e" / "ablations" / "base-0").rename(
        tmp_path / "e" / "ablations" / "models_of_round_1-0"
    )
    assert (tmp_path / "all.json").read_text() == kept
    assert "| models of round 1 | 3.00 M |" in table("e").stdout
    (tmp_path / "all.json").write_text("[1, 2]")
    assert table("b").returncode == 2 and "all.json is not a file of this" in table("b").stderr
    assert (tmp_path / "all.json").read_text() == "[1, 2]"


def test_ablations_that_are_scored_already_are_not_trained_again(tmp_path):
    """The script with a `python` that only writes down what it was called with."""
    for stage in ("vae", "mdrnn"):
        for logdir in ("given", "here"):
            (tmp_path / logdir / stage).mkdir(parents=True)
            (tmp_path / logdir / stage / "best.tar").touch()
    only_written_down(tmp_path, "ablations.sh")
    scores = '"base-0": {"steps": 2000011, "a": 1},\n"no_m-1": {"steps": 2000000, "a": 1}'
    scores += ',\n"no_m-0": {"steps": 1999999, "a": 1}'
    (tmp_path / "results.json").write_text("{\n" + scores + "\n}\n")
    settings = {"MODELS": "given", "RESULTS": "results.json", "LOGDIR": "here"}
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"

    def ablations(only, **more):
        return subprocess.run(
            ["bash", "scripts/ablations.sh"],
            cwd=tmp_path,
            env=os.environ | settings | {"PATH": path, "ONLY": only} | more,
            capture_output=True,
            text=True,
        )

    done = ablations("base no_m")
    assert done.returncode == 0, done.stderr
    assert "results.json: has the scores of base-0" in done.stderr
    calls = (tmp_path / "calls").read_text().splitlines()
    trained = [re.search(r"--logdir (\S+)", c)[1] for c in calls if c.startswith("traincontr")]
    assert trained == ["here/ablations/base-1", "here/ablations/no_m-0"]
    assert calls[-1] == "scripts/ablation_table.py --logdir here --results results.json"
    (tmp_path / "calls").unlink()
    assert ablations("base no_such_choice").returncode == 2
    other = ablations("models_of_round_1")  # is compared with V and M of the same run alone
    assert other.returncode == 2 and "with MODELS=given is none of" in other.stderr
    missing = ablations("sigma_0.2 models_of_round_1", MODELS="here")
    assert missing.returncode == 2 and "needs here/round_1/vae/best.tar" in missing.stderr
    assert not (tmp_path / "calls").exists()  # before anything was trained

    # A training that went on is scored again.
    run = tmp_path / "here" / "ablations" / "no_m-0"
    (run / "ctrl").mkdir()
    (run / "ctrl" / "checkpoint.tar").touch()
    for seconds, scored in ((-60, 0), (60, 1)):
        when = time.time() + seconds
        os.utime(run / "ctrl" / "checkpoint.tar", (when, when))
        assert ablations("no_m").returncode == 0
        calls = (tmp_path / "calls").read_text().splitlines()
        assert len([c for c in calls if c.startswith("test_controller")]) == scored
        (tmp_path / "calls").unlink()


def only_written_down(folder, script):
    """Copy one of `scripts/` to a folder, with a `python` that writes its arguments to `calls`."""
    for name in ("scripts", "bin"):
        (folder / name).mkdir()
    shutil.copy(ROOT / "scripts" / script, folder / "scripts")
    (folder / "scripts" / "environment.sh").write_text("make_environment() { :; }\n")
    (folder / "bin" / "python").write_text(
        """#!/bin/sh
echo "$*" >> calls; echo 2
while [ $# -gt 0 ]; do [ "$1" = --json ] && : > "$2"; shift; done; true
"""
    )
    (folder / "bin" / "python").chmod(0o755)


def calls_of(script, folder, **environment):
    """What a script that was copied by `only_written_down` would have run."""
    path = f"{folder / 'bin'}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", f"scripts/{script}"],
        cwd=folder,
        env=os.environ | {"PATH": path, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    calls = (folder / "calls").read_text().splitlines()
    (folder / "calls").unlink()
    return calls


def test_the_full_experiment_calls_all_stages_and_scores_what_is_new(tmp_path):
    only_written_down(tmp_path, "reproduce.sh")
    first = tmp_path / "exp" / "round_1"
    first.mkdir(parents=True)
    (first / "controller.mp4").touch()

    def reproduce():
        return calls_of("reproduce.sh", tmp_path, LOGDIR="exp")

    calls = reproduce()
    stages = ["data/generation_script.py"] * 2
    stages += ["trainvae.py", "trainmdrnn.py", "traincontroller.py", "test_controller.py"]
    assert [call.split()[0] for call in calls] == stages
    for call in calls:
        arguments = call.split()
        of = arguments[arguments.index("--logdir") + 1] if "--logdir" in arguments else None
        if call.startswith("data"):
            assert of == ("exp/round_1" if "--policy controller" in call else None)
            assert "--threads 2" in call and re.search(r"--rootdir exp/data/\w+ ", call)
        else:
            assert of == "exp"
    seeds = [re.search(r"--seed (\d+)", call)[1] for call in calls[:2]]
    assert len(set(seeds)) == 2  # no track is played twice
    assert all("--seed 1" in call for call in calls[2:5])
    assert (tmp_path / "exp" / "scores.json").exists()

    # Again: finished stages say so themselves; scored is what is newer than its scores.
    assert [call.split()[0] for call in reproduce()] == stages[:-1]
    (tmp_path / "exp" / "ctrl").mkdir()
    (tmp_path / "exp" / "ctrl" / "best.tar").touch()
    os.utime(tmp_path / "exp" / "scores.json", (0, 0))
    assert [call.split()[0] for call in reproduce()] == stages


def test_the_longer_training_goes_on_with_the_same_models_and_scores_twice(tmp_path):
    only_written_down(tmp_path, "longer.sh")
    longer = tmp_path / "exp" / "longer"
    longer.mkdir(parents=True)
    copying, controller, *scores, export = calls_of("longer.sh", tmp_path, LOGDIR="exp")
    assert "--logdir exp --to exp/longer --stages vae mdrnn" in copying
    assert "--logdir exp/longer" in controller and "--warm-start exp/ctrl/best.tar" in controller
    assert [re.search(r"--seed (\d)", call)[1] for call in scores] == ["5", "6"]
    assert "--logdir exp/longer --to exp/longer/pretrained" in export
    # Again: V and M stay, and nothing is scored twice.
    (longer / "mdrnn").mkdir()
    (longer / "mdrnn" / "best.tar").touch()
    again = calls_of("longer.sh", tmp_path, LOGDIR="exp")
    assert [call.split()[0] for call in again] == ["traincontroller.py", "scripts/export.py"]


def test_the_loop_goes_from_dream_to_data_to_dream_and_on(tmp_path):
    only_written_down(tmp_path, "dream_loop.sh")
    (tmp_path / "bin" / "python").write_text(
        (tmp_path / "bin" / "python").read_text().replace(": >", "mkdir -p $(dirname $2) && : >")
    )

    def loop(rounds):
        return calls_of("dream_loop.sh", tmp_path, LOGDIR="loop", ROUNDS=str(rounds))

    training = ["trainvae.py", "trainmdrnn.py", "traincontroller.py", "test_controller.py"]
    first = loop(1)
    assert [call.split()[0] for call in first] == ["data/generation_script.py", *training]
    assert "--dream" in first[3]
    _, *driving, copying, vae, mdrnn, controller, score = loop(2)  # the first round is done
    for call, patience in zip(driving, (100, 0), strict=True):
        assert "--controller dream --last" in call and "--logdir loop/round_1" in call
        assert f"--patience {patience} " in call
    for option in ("rootdir", "seed"):
        assert len({re.search(rf"--{option} (\S+)", call)[1] for call in driving}) == 2
    assert "--stages vae mdrnn" in copying and "--to loop/round_2" in copying
    for call in (vae, mdrnn, controller, score):
        assert "--logdir loop/round_2" in call
    assert "--epochs 2" in vae and "--epochs 120" in mdrnn and "--include_reward" in mdrnn
    assert all(call.startswith("data/generation_script.py") for call in loop(2))  # says it is there


def test_temperatures_are_trained_scored_four_times_and_put_into_a_table(run_here, tmp_path):
    only_written_down(tmp_path, "temperatures.sh")
    for part in ("vae", "mdrnn"):
        (tmp_path / "exp" / part).mkdir(parents=True)

    def temperatures():
        chosen = {"TEMPERATURES": "0.5 1.3", "SEEDS": "3 4", "GENERATIONS": "7"}
        return calls_of("temperatures.sh", tmp_path, LOGDIR="exp", **chosen)

    calls = temperatures()
    names = ["traincontroller.py", *["test_controller.py"] * 4, "scripts/temperature_table.py"]
    assert [call.split()[0] for call in calls] == names * 4
    runs = [f"exp/temperatures/{name}" for name in ("0.5-3", "1.3-3", "0.5-4", "1.3-4")]
    for run, training, *scoring in zip(runs, *(calls[k::6] for k in range(5)), strict=True):
        seed, temperature = run[-1], run[-5:-2]
        assert f"--logdir {run} --device cpu --seed {seed} --dream" in training
        assert f"--temperature {temperature}" in training and "--max-generations 7" in training
        assert (tmp_path / run / "mdrnn").resolve() == tmp_path / "exp" / "mdrnn"
        for k, scores in enumerate(("best_real", "best_dream", "last_real", "last_dream")):
            assert f"--logdir {run}" in scoring[k] and f"{run}/{scores}.json" in scoring[k]
            assert ("--last" in scoring[k]) == (k > 1)
            assert (f"--in-dream --temperature {temperature}" in scoring[k]) == (k % 2 == 1)
    again = temperatures()  # what is scored is not scored again
    assert [call.split()[0] for call in again] == ["traincontroller.py", names[-1]] * 4

    for k, run in enumerate(runs):
        for name in ("best_real", "best_dream", "last_real", "last_dream"):
            scores = Scores([100.0 * k, 100.0 * k + 20], [1, 2], 1, "a-b", {})
            write_scores(tmp_path / run / f"{name}.json", scores)
    (tmp_path / runs[3] / "last_real.json").unlink()  # not finished: left out
    table = run_here("scripts/temperature_table.py", "--logdir", "exp", cwd=tmp_path)
    *_, first, second = table.stdout.splitlines()
    assert first == "| 0.5 |" + " 10 +- 10, 210 +- 10 |" * 4
    assert second == "| 1.3 |" + " 110 +- 10 |" * 4
    nothing = run_here("scripts/temperature_table.py", "--logdir", "exp/vae", cwd=tmp_path)
    assert nothing.returncode == 2 and "temperatures.sh" in nothing.stderr


def test_without_ray_a_line_says_what_to_install(run_here, experiment, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "utils.cluster", raising=False)
    monkeypatch.delattr("utils.cluster", raising=False)  # as if no test before had imported it
    options = ["--logdir", experiment, "--ray-address", "auto"]
    for script, more in (
        ("traincontroller.py", []),
        ("data/generation_script.py", ["--policy", "controller", "--rootdir", "data"]),
    ):
        done = run_here(script, *options, *more, cwd=tmp_path)
        assert done.returncode == 2 and "requirements-cluster.txt" in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
