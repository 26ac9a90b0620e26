"""What the stages of the benchmarks stand on; what they measure is not a test's."""

import os

import pytest
from conftest import write_dataset

from benchmarks import setting
from benchmarks.measure import SHORT, median_rates, medians, rate_in_processes
from data.episodes import list_episodes, read_episode
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
