"""What the fast precision changes of the driving: returns of `pretrained/` on the same tracks."""

import numpy as np
import torch

from benchmarks.measure import ROOT, Row, row
from envs.rollouts import play
from envs.simulator import Simulator
from envs.tracks import track_seeds
from models.agent import AgentPolicy
from models.logdir import load_agent, load_controller
from utils.devices import choose_device, fast_precision

# Tracks that no choice of a controller was made on, and none that results are given of.
TRACKS, SEED = 48, 2


def play_tracks(precision: torch.dtype) -> np.ndarray:
    """Returns (TRACKS,) with the encoder in `precision`."""
    logdir = ROOT / "pretrained"
    controller, driving, _ = load_controller(logdir / "ctrl" / "best.tar")
    agent = load_agent(logdir, choose_device("auto"), precision, driving)
    environments = Simulator(track_seeds("test", TRACKS, SEED))
    parameters = controller.flat_parameters().expand(TRACKS, -1)
    returns, _ = play(environments, TRACKS, TRACKS, AgentPolicy(agent, parameters))
    environments.close()
    return returns


def measure(_: int) -> list[Row]:
    fast = fast_precision(choose_device("auto"))
    if fast == torch.float32:
        print("V drives in float32 on this device: nothing to compare")
        return []
    stage = f"driving, V in {str(fast).removeprefix('torch.')}, {TRACKS} tracks"
    ours = play_tracks(fast)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # float32 and no less
        exact = play_tracks(torch.float32)
    difference = ours - exact
    error = difference.std(ddof=1) / TRACKS**0.5
    against = f"V in float32 (difference {difference.mean():.1f} +- {error:.1f})"
    return [row(stage, ours.mean(), against, exact.mean(), "return")]
