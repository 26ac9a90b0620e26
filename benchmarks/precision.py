"""What the fast precision changes of the driving: returns of `pretrained/` on the same tracks."""

import torch

from benchmarks.measure import ROOT, Row, row
from benchmarks.setting import CORES, simulator
from envs.parallel import load_agent, load_controller
from envs.rollouts import AgentPolicy, play
from envs.simulator import make_simulator
from envs.tracks import track_seeds
from utils.learning import choose_device, fast_precision

TRACKS = 48


def mean_return(precision: torch.dtype) -> float:
    """Mean return over the first TRACKS evaluation tracks with the encoder in `precision`."""
    logdir = ROOT / "pretrained"
    controller, driving, _ = load_controller(logdir / "ctrl" / "best.tar")
    agent = load_agent(logdir, choose_device("auto"), precision, driving)
    environments = make_simulator(simulator(), track_seeds("evaluate", TRACKS), CORES)
    parameters = controller.flat_parameters().expand(TRACKS, -1)
    returns, _ = play(environments, TRACKS, TRACKS, AgentPolicy(agent, parameters))
    environments.close()
    return float(returns.mean())


def measure() -> list[Row]:
    fast = fast_precision(choose_device("auto"))
    if fast == torch.float32:
        return []
    stage = f"driving, V in {str(fast).removeprefix('torch.')}, {TRACKS} tracks"
    return [row(stage, mean_return(fast), "V in float32", mean_return(torch.float32), "return")]
