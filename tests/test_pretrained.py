"""The logdir that is shipped drives."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT

from envs import simulator
from envs.rollouts import play
from envs.tracks import track_seeds
from models.agent import AgentPolicy
from models.logdir import load_agent, load_controller
from utils.checkpoint import load_checkpoint

PRETRAINED = ROOT / "pretrained"


@pytest.fixture(scope="module")
def shipped():
    """The shipped agent, with V in float32, and its controller's parameters (P,)."""
    controller, driving, _ = load_controller(PRETRAINED / "ctrl" / "best.tar")
    agent = load_agent(PRETRAINED, torch.device("cpu"), torch.float32, driving)
    return agent, controller.flat_parameters()


def test_pretrained_drives_three_tracks(shipped):
    agent, parameters = shipped
    environments = simulator.Simulator(track_seeds("test", 3, 1))
    returns, lengths = play(environments, 3, 3, AgentPolicy(agent, parameters.expand(3, -1)))
    environments.close()
    assert returns.mean() > 800 and (lengths > 600).all(), (returns, lengths)


# On the first four test tracks of seed 3, with V in float32: the mean action (steering, gas, brake)
# of the first 20 steps, and returns. Another shipped controller needs other values.
ACTIONS_OF_20 = [
    [0.4134, 0.8729, 0],
    [0.3948, 0.9195, 0],
    [0.179, 0.9395, 0],
    [0.288, 0.888, 0],
]
AFTER_100 = [69.87, 75.91, 80.58, 88.04]
AFTER_300 = [299.07, 317.08, 299.71, 377.84]


def test_actions_and_returns_are_what_they_were(shipped, monkeypatch):
    """Whatever is made faster: the same tracks give the same actions and returns.

    Driving amplifies rounding, which differs between processors. A hundred thousandth on the
    controller's weights moves the mean of 20 actions by less than 0.0001, where two thousandths on
    mu move it by 0.02. It moves no return by more than a tile in 100 steps, but one by several in
    300, and then their mean by less than two.
    """
    agent, parameters = shipped
    policy = AgentPolicy(agent, parameters.expand(4, -1))

    def drive(steps):
        monkeypatch.setattr(simulator, "MAX_STEPS", steps)
        environments = simulator.Simulator(track_seeds("test", 4, 3))
        seen = []
        returns, _ = play(environments, 4, 4, policy, lambda _, actions, *__: seen.append(actions))
        environments.close()
        return returns, np.stack(seen)  # all four are driven in each step, in their order

    _, actions = drive(20)
    assert actions.mean(axis=0) == pytest.approx(np.array(ACTIONS_OF_20), abs=0.005)
    tile = 4.0  # at most, with 250 tiles or more
    assert drive(100)[0] == pytest.approx(AFTER_100, abs=tile)
    assert drive(300)[0].mean() == pytest.approx(np.mean(AFTER_300), abs=2 * tile)


def test_pretrained_is_weights_only_and_small():
    files = list(PRETRAINED.rglob("*.tar"))
    assert {path.relative_to(PRETRAINED) for path in files} == {
        Path(stage, "best.tar") for stage in ("vae", "mdrnn", "ctrl")
    }
    assert sum(path.stat().st_size for path in files) < 25e6
    for path in files:
        assert not {"optimizer", "scheduler"} & load_checkpoint(path).keys()
