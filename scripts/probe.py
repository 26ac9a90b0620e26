"""What a linear function of z can tell of the car and the road: a probe of V.

    python scripts/probe.py --logdir pretrained exp_dir

C is linear, so it can only steer by what is linear in z and h. Episodes of Gymnasium, driven by the
controller of `--driver` with noise on its weights, are seen by the V of each logdir; ridge
regressions from mu (T, 32) to what the simulator knows are fitted on three quarters of the
episodes and scored on the rest, four times. Printed is the R^2 of each: 1 is exact, 0 no better
than the mean.
"""

import sys
from argparse import Namespace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from envs.parallel import load_agent, load_controller
from envs.rollouts import AgentPolicy, play
from envs.simulator import GymnasiumSimulator
from envs.tracks import track_seeds
from models.vae import Encoder
from utils.checkpoint import load_weights, stage_weights
from utils.cli import UserError, add_seed, positive_int, run_script, script_parser
from utils.frames import pixels_to_unit, to_64
from utils.learning import choose_device

# Of the weights of the episodes' controllers, in turn: from one that holds the road to one that
# hardly does, so that more is seen than its middle.
NOISE = (0.0, 0.03, 0.06, 0.1)
ZOOM = 50  # frames at the beginning of an episode, in which the camera comes down
ROAD = 40 / 3  # its width, m
AHEAD = (4, 8, 14)  # tiles of 3.5 m
FOLDS = 4


class Situation(NamedTuple):
    """Where a car is and how it moves, as the simulator knows it."""

    offset: float  # from the middle of the road, to the right, m
    heading: float  # sine of the angle from the road's direction, to the left
    bend_4: float  # sine of the road's turn to the left within so many tiles
    bend_8: float
    bend_14: float
    speed: float  # m/s
    rotation: float  # rad/s


def parse_arguments() -> Namespace:
    parser = script_parser("Tell what is linear in z: offset, heading, bends, speed, rotation.")
    parser.add_argument(
        "--logdir", type=Path, nargs="+", required=True, help="experiments whose V is probed"
    )
    parser.add_argument(
        "--driver", type=Path, default=Path("pretrained"), help="experiment whose controller drives"
    )
    parser.add_argument("--episodes", type=positive_int, default=16, help="at least 4")
    add_seed(parser, "tracks and noise")
    return parser.parse_args()


def situation(env) -> Situation:
    """Of the car of an unwrapped CarRacing-v3, at the tile of the road that is next to it."""
    _, angles, x, y = np.array(env.track).T
    hull = env.car.hull
    east, north = hull.position[0] - x, hull.position[1] - y
    here = np.hypot(east, north).argmin()
    angle = angles[here]  # of the road's direction (-sin, cos); its right is (cos, sin)
    ahead = angles[(here + np.array(AHEAD)) % len(angles)]
    return Situation(
        east[here] * np.cos(angle) + north[here] * np.sin(angle),
        np.sin(hull.angle - angle),
        *np.sin(ahead - angle),
        hull.linearVelocity.length,
        hull.angularVelocity,
    )


def record(driver: Path, episodes: int, seed: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """For each episode its frames (T, 64, 64, 3) uint8 and situations (T, 7).

    Left out is what is seen during the zoom, or further than the road is wide from its middle.
    """
    device = choose_device("cpu")
    controller, driving, _ = load_controller(driver / "ctrl" / "best.tar")
    agent = load_agent(driver, device, torch.float32, driving)
    weights = controller.flat_parameters()
    generator = torch.Generator().manual_seed(seed)
    noise = torch.tensor(NOISE).repeat(-(-episodes // len(NOISE)))[:episodes, None]
    parameters = weights + noise * torch.randn(episodes, len(weights), generator=generator)

    simulator = GymnasiumSimulator(track_seeds("data", episodes, seed))
    frames, situations = [[] for _ in range(episodes)], [[] for _ in range(episodes)]

    steps = [0] * episodes

    def watch(ids: np.ndarray, actions: np.ndarray, seen: np.ndarray, *_) -> None:
        for i, frame in zip(ids.tolist(), to_64(torch.from_numpy(seen)).numpy(), strict=True):
            steps[i] += 1
            now = situation(simulator.unwrapped(i))
            if steps[i] > ZOOM and abs(now.offset) < ROAD:
                frames[i].append(frame)
                situations[i].append(now)

    play(simulator, episodes, 4, AgentPolicy(agent, parameters), watch, patience=100)
    simulator.close()
    if not all(frames):
        raise UserError(
            f"--driver {driver}: an episode ended before anything of the road was seen; let "
            "another controller drive"
        )
    return [np.stack(f) for f in frames], [np.array(s, np.float64) for s in situations]


def explained(inputs: list[np.ndarray], targets: list[np.ndarray]) -> np.ndarray:
    """R^2 of a ridge regression, inputs n x (T, D) -> targets n x (T, K), on episodes left out.

    The mean over FOLDS parts of the n episodes, which are left out in turn. Returns (K,).
    """
    parts = np.array_split(np.arange(len(inputs)), FOLDS)
    scores = []
    for part in parts:
        fitted = [i for i in range(len(inputs)) if i not in part]
        x, y = (np.concatenate([values[i] for i in fitted]) for values in (inputs, targets))
        x_left, y_left = (np.concatenate([values[i] for i in part]) for values in (inputs, targets))
        mean, level = x.mean(axis=0), y.mean(axis=0)
        gram = (x - mean).T @ (x - mean) + np.eye(x.shape[1])
        weights = np.linalg.solve(gram, (x - mean).T @ (y - level))
        errors = (x_left - mean) @ weights + level - y_left
        scores.append(1 - (errors**2).mean(axis=0) / y_left.var(axis=0))
    return np.mean(scores, axis=0)


@torch.inference_mode()
def main() -> None:
    args = parse_arguments()
    if args.episodes < FOLDS:
        raise UserError(f"--episodes {args.episodes}: at least {FOLDS} are needed")
    encoders = []
    for logdir in args.logdir:
        encoder = Encoder()
        load_weights(encoder, stage_weights(logdir, "vae", "python trainvae.py"), part="encoder.")
        encoders.append(encoder.eval())
    frames, situations = record(args.driver, args.episodes, args.seed)
    print(f"{sum(map(len, frames))} frames of {args.episodes} episodes, seed {args.seed}")
    print("| V | " + " | ".join(Situation._fields).replace("_", " ") + " |")
    print("| --- |" + " --- |" * len(Situation._fields))
    for logdir, encoder in zip(args.logdir, encoders, strict=True):
        latents = []
        for episode in map(torch.from_numpy, frames):
            mu = [encoder.mean(pixels_to_unit(part)) for part in episode.split(256)]
            latents.append(torch.cat(mu).double().numpy())
        scores = explained(latents, situations)
        print(f"| {logdir} | " + " | ".join(f"{score:.2f}" for score in scores) + " |")


if __name__ == "__main__":
    run_script(main)
