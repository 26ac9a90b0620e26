"""What the stages of the benchmarks stand on; what they measure is not a test's."""

import importlib
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_dataset

from benchmarks import controller, growth, latents, scaling, setting
from benchmarks.measure import SHORT, median_rates, medians, rate_in_processes
from data.episodes import list_episodes, read_episode
from models.controller import PARAMETERS
from utils.cli import UserError


@pytest.fixture
def own_folder(monkeypatch, tmp_path):
    """An empty folder in place of that of the benchmarks."""
    monkeypatch.setattr(setting, "folder", lambda: tmp_path)
    for made in (setting.experiment, setting.many_episodes):
        made.cache_clear()
    yield tmp_path
    for made in (setting.experiment, setting.many_episodes):
        made.cache_clear()


def test_the_generators_play_whole_episodes(own_folder):
    with setting.generators() as pool:
        list(pool.run([{0: own_folder / "rollout_0.npz"}]))
    episode = read_episode(own_folder / "rollout_0.npz")
    assert len(episode.observations) > 100 and episode.terminals.sum() <= 1


def test_a_process_that_fails_ends_the_measurement():
    with pytest.raises(UserError, match="process of the benchmark failed"):
        rate_in_processes(2, os.abort)  # which takes no arguments


def test_a_root_of_copies_is_made_once(monkeypatch, own_folder):
    """Two stages of the benchmarks ask for the same many episodes."""
    played = write_dataset(own_folder / "played", [40, 50])
    monkeypatch.setattr(setting, "dataset", lambda: played)
    first = setting.many_episodes(5)
    made = {path: path.stat().st_mtime_ns for path in first.iterdir()}
    assert setting.many_episodes(5) == first
    assert {path: path.stat().st_mtime_ns for path in first.iterdir()} == made
    assert [file.length for file in list_episodes(first)] == [40, 50, 40, 50, 40]


def test_rates_are_medians_of_so_many_repeats():
    one, other = iter([5.0, 1.0, 3.0]), iter([2.0, 9.0, 4.0])
    rates = {"one": lambda: next(one), "other": lambda: next(other)}
    assert medians(rates, 3) == {"one": 3.0, "other": 4.0}
    assert next(one, None) is None and next(other, None) is None  # measured no less often
    done = []
    assert median_rates({"work": lambda: done.append(1) or 1.0}, 2)["work"] > 0
    assert len(done) == 1 + 2 + SHORT  # the first one warms up


@pytest.mark.parametrize(
    "name", [path.stem for path in Path(setting.__file__).parent.glob("[a-z]*.py")]
)
def test_each_module_finds_what_it_takes_of_the_project(name):
    importlib.import_module(f"benchmarks.{name}")


class Clock:
    """Each look at it is a second later."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self) -> float:
        self.now += 1
        return self.now


def test_the_controller_is_measured_as_it_is_trained(monkeypatch, own_folder):
    """All but the driving itself, which takes a generation."""

    def driven(pool, parameters, seeds):
        lengths = np.full((len(parameters), len(seeds)), 1000)
        assert len(pool) == 2 and parameters.shape[1] == PARAMETERS
        return np.zeros(lengths.shape), lengths

    monkeypatch.setattr(controller, "run_rollouts", driven)
    monkeypatch.setattr(controller, "time", Clock())
    with controller.evaluation(2, 3, 4) as rate:
        assert rate() == 12_000


def test_growth_measures_the_same_steps_of_few_environments_and_of_many(monkeypatch, own_folder):
    """Those from FROM to TO, of 16 episodes at least."""
    driven = []

    def play(environments, n, slots, policy, watch):
        driven.append([n, 0])
        while True:
            driven[-1][1] += 1
            watch(np.arange(n))

    monkeypatch.setattr(growth, "play", play)
    monkeypatch.setattr(growth, "time", Clock())
    for n, groups in ((1, 16), (8, 2), (32, 1)):
        driven.clear()
        assert growth.environments_rate(n) == n
        assert driven == groups * [[n, growth.TO]]


def test_an_epoch_of_v_is_timed_with_more_data_than_the_buffer_holds(monkeypatch, own_folder):
    monkeypatch.setattr(growth, "dataset", lambda: write_dataset(own_folder / "data", 3 * [40]))
    monkeypatch.setattr(growth, "MAX_STEPS", 10)  # room for 80 frames
    monkeypatch.setattr(growth, "time", Clock())
    held = []
    epoch = growth.run_epoch

    def run_epoch(model, loader, *arguments):
        held.append((len(loader), loader.fits))
        return epoch(model, loader, *arguments)

    monkeypatch.setattr(growth, "run_epoch", run_epoch)
    assert growth.epoch_seconds(1) == 1 and growth.epoch_seconds(3) == 1
    assert held == [(40, True), (120, False)]


@pytest.mark.parametrize("streams", [1, 2])
def test_the_limit_of_encoding_counts_the_frames_of_all_streams(streams):
    seen, threads = [], torch.get_num_threads()
    work = latents.forward(seen.append, torch.device("cpu"), torch.float32, 8, streams, 100)
    assert work() == sum(len(x) for x in seen) == 8 * streams * (12 if streams == 1 else 6)
    assert torch.get_num_threads() == threads


def test_a_cluster_is_simulated_from_what_was_measured():
    """Closed forms: one worker, as many as rollouts, a slow driver, another search."""
    rates = {1: 100.0, 2: 150.0, 64: 150.0}
    assert scaling.lockstep(np.array([100, 300]), rates) == pytest.approx(200 / 150 + 200 / 100)
    same = scaling.Measured([200], rates, {10: 0.0}, 0.0, "nothing")
    # 8 rollouts of 200 steps: 8 together while one worker has all, 1 for each of 8 workers.
    assert scaling.generation_seconds(same, 4, 2, 1) == pytest.approx(8 * 200 / 150)
    assert scaling.generation_seconds(same, 4, 2, 8) == pytest.approx(200 / 100)
    assert scaling.generation_seconds(same, 4, 2, 10_000) == pytest.approx(200 / 100)
    # 256 rollouts on one worker are four units, one after the other.
    assert scaling.generation_seconds(same, 64, 4, 1) == pytest.approx(256 * 200 / 150)
    slow = same._replace(send=10.0)  # seconds of the driver for each of 8 units: it is the limit
    assert scaling.generation_seconds(slow, 4, 2, 8) == pytest.approx(8 * 10)
    search = same._replace(search={10: 1.0, 20: 3.0})
    assert scaling.generation_seconds(search, 15, 1, 15) == pytest.approx(2 + 2)
    assert scaling.generation_seconds(search, 40, 1, 40) == pytest.approx(2 + 6)
    mixed = same._replace(lengths=[100, 300])  # the longest one of many is waited for
    assert scaling.generation_seconds(mixed, 32, 4, 128) == pytest.approx(3.0)
    assert "| 1,000 |" in scaling.tables(mixed._replace(send=1e-3))
