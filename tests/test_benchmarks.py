"""What the stages of the benchmarks stand on; what they measure is not a test's."""

import importlib
import os
from pathlib import Path

import numpy as np
import pytest
from conftest import write_dataset

from benchmarks import controller, growth, setting
from benchmarks.measure import SHORT, median_rates, medians, rate_in_processes
from data.episodes import list_episodes, read_episode
from models.controller import PARAMETERS
from utils.cli import UserError


def test_the_generators_play_whole_episodes(monkeypatch, tmp_path):
    monkeypatch.setattr(setting, "folder", lambda: tmp_path)
    with setting.generators() as pool:
        list(pool.run([{0: tmp_path / "rollout_0.npz"}]))
    episode = read_episode(tmp_path / "rollout_0.npz")
    assert len(episode.observations) > 100 and episode.terminals.sum() <= 1


def test_a_process_that_fails_ends_the_measurement():
    with pytest.raises(UserError, match="process of the benchmark failed"):
        rate_in_processes(2, os.abort)  # which takes no arguments


def test_a_root_of_links_is_made_once(monkeypatch, tmp_path):
    """Two stages of the benchmarks ask for the same many episodes."""
    monkeypatch.setattr(setting, "folder", lambda: tmp_path)
    monkeypatch.setattr(setting, "dataset", lambda: write_dataset(tmp_path / "played", [40, 50]))
    setting.many_episodes.cache_clear()
    first = setting.many_episodes(5)
    assert setting.many_episodes(5) == first
    assert [file.length for file in list_episodes(first)] == [40, 50, 40, 50, 40]
    setting.many_episodes.cache_clear()


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


def test_the_controller_is_measured_as_it_is_trained(monkeypatch, tmp_path):
    """All but the driving itself, which takes a generation."""
    pytest.importorskip("envpool")

    def driven(pool, simulator, parameters, seeds):
        lengths = np.full((len(parameters), len(seeds)), 1000)
        assert len(pool) == 2 and parameters.shape[1] == PARAMETERS
        return np.zeros(lengths.shape), lengths

    monkeypatch.setattr(setting, "folder", lambda: tmp_path)
    monkeypatch.setattr(controller, "run_rollouts", driven)
    monkeypatch.setattr(controller, "time", Clock())
    setting.experiment.cache_clear()
    with controller.evaluation(2, 3, 4) as rate:
        assert rate() == 12_000
    setting.experiment.cache_clear()


def test_growth_measures_the_same_steps_of_few_environments_and_of_many(monkeypatch, tmp_path):
    """Those from FROM to TO, of as many episodes."""
    driven = []

    def play(environments, n, slots, policy, watch):
        driven.append(n)
        for _ in range(1000):
            watch(np.arange(n))

    monkeypatch.setattr(setting, "folder", lambda: tmp_path)
    monkeypatch.setattr(growth, "play", play)
    monkeypatch.setattr(growth, "time", Clock())
    setting.experiment.cache_clear()
    assert growth.environments_rate(1) == 1 and driven == 16 * [1]
    assert growth.environments_rate(8) == 8 and driven[16:] == [8, 8]
    assert growth.environments_rate(32) == 32 and driven[18:] == [32]
    setting.experiment.cache_clear()
