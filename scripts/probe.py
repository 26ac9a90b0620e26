"""What is linear in z, and in z and h, of the car and the road: a probe of V and M.

    python scripts/probe.py --logdir pretrained exp_dir

C is linear, so it can only steer by what is linear in z and h. Episodes driven by the
controller of `--driver` with noise on its weights, are seen by the V of each logdir and remembered
by its M, where there is one; ridge regressions from mu (T, 32), and from mu and h (T, 288), to what
the simulator knows are fitted on three quarters of the episodes and scored on the rest, four times.
Printed is the R^2 of each: 1 is exact, 0 no better than the mean. The same from the first principal
components of mu and h tells how much is in what varies most.
"""

import sys
from argparse import Namespace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from envs.rollouts import play
from envs.simulator import Simulator
from envs.tracks import track_seeds
from models.agent import AgentPolicy
from models.logdir import load_agent, load_controller, stage_weights
from models.mdrnn import HIDDEN_SIZE, MDRNN
from models.vae import Encoder
from utils.checkpoint import load_weights
from utils.cli import UserError, add_seed, positive_int, run_script, script_parser
from utils.devices import choose_device
from utils.frames import pixels_to_unit, to_64

# Of the weights of the episodes' controllers, in turn: from one that holds the road to one that
# hardly does, so that more is seen than its middle.
NOISE = (0.0, 0.03, 0.06, 0.1)
ZOOM = 50  # frames at the beginning of an episode, in which the camera comes down
ROAD = 40 / 3  # its width, m
AHEAD = (4, 8, 14)  # tiles of 3.5 m
COMPONENTS = (4, 16, 64)  # of z and h
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


class Recording(NamedTuple):
    """An episode: T actions, and what is seen and where the car is after each."""

    actions: np.ndarray  # (T, 3)
    frames: np.ndarray  # (T, 64, 64, 3) uint8
    situations: np.ndarray  # (T, 7)
    scored: np.ndarray  # (T,) bool: after the zoom, and no further from the road than it is wide


def parse_arguments() -> Namespace:
    parser = script_parser(
        "Tell what is linear in z and h: offset, heading, bends, speed, rotation."
    )
    parser.add_argument(
        "--logdir", type=Path, nargs="+", required=True, help="experiments whose V and M are probed"
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


def record(driver: Path, episodes: int, seed: int) -> list[Recording]:
    """Drive the episodes. Raises UserError where one of them has nothing to be scored."""
    device = choose_device("cpu")
    controller, driving, _ = load_controller(driver / "ctrl" / "best.tar")
    agent = load_agent(driver, device, torch.float32, driving)
    weights = controller.flat_parameters()
    generator = torch.Generator().manual_seed(seed)
    noise = torch.tensor(NOISE).repeat(-(-episodes // len(NOISE)))[:episodes, None]
    parameters = weights + noise * torch.randn(episodes, len(weights), generator=generator)

    simulator = Simulator(track_seeds("data", episodes, seed))
    steps = [[] for _ in range(episodes)]

    def watch(ids: np.ndarray, actions: np.ndarray, seen: np.ndarray, *_) -> None:
        small = to_64(torch.from_numpy(seen)).numpy()
        for i, action, frame in zip(ids.tolist(), actions, small, strict=True):
            now = situation(simulator.unwrapped(i))
            scored = len(steps[i]) >= ZOOM and abs(now.offset) < ROAD
            steps[i].append((action, frame, now, scored))

    play(simulator, episodes, 4, AgentPolicy(agent, parameters), watch, patience=100)
    simulator.close()
    recorded = [Recording(*map(np.array, zip(*episode, strict=True))) for episode in steps]
    if not all(episode.scored.any() for episode in recorded):
        raise UserError(
            f"--driver {driver}: an episode ended before anything of the road was seen; let "
            "another controller drive"
        )
    return recorded


def latents(encoder: Encoder, episode: Recording) -> torch.Tensor:
    """mu of each frame, (T, 32)."""
    parts = torch.from_numpy(episode.frames).split(256)
    return torch.cat([encoder.mean(pixels_to_unit(part)) for part in parts])


def memories(mdrnn: MDRNN, episode: Recording, mu: torch.Tensor) -> torch.Tensor:
    """h beside each frame, (T, 256): what M remembers of all before it, as C is given it.

    It begins at the first frame that was recorded, a step later than in driving.
    """
    actions = torch.from_numpy(episode.actions[1:]).float()
    h, _ = mdrnn.rnn(torch.cat([actions, mu[:-1]], dim=1).unsqueeze(1))
    return torch.cat([torch.zeros(1, HIDDEN_SIZE), h.squeeze(1)])


def principal(inputs: list[np.ndarray], n: int) -> tuple[list[np.ndarray], float]:
    """The first n principal components of the inputs, m x (T, D) -> m x (T, n).

    The second is their share of the variance.
    """
    variances, axes = np.linalg.eigh(np.cov(np.concatenate(inputs).T))  # ascending
    return [x @ axes[:, -n:] for x in inputs], float(variances[-n:].sum() / variances.sum())


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
    models = []
    for logdir in args.logdir:
        encoder, mdrnn = Encoder(), None
        load_weights(encoder, stage_weights(logdir, "vae"), part="encoder.")
        if (memory := logdir / "mdrnn" / "best.tar").exists():
            mdrnn = MDRNN()
            load_weights(mdrnn, memory)
        else:
            print(f"{memory} does not exist: of {logdir} z alone is probed")
        models.append((encoder.eval(), mdrnn))
    episodes = record(args.driver, args.episodes, args.seed)
    situations = [episode.situations[episode.scored] for episode in episodes]
    print(f"{sum(map(len, situations))} frames of {args.episodes} episodes, seed {args.seed}")
    print("| V and M | linear in | " + " | ".join(Situation._fields).replace("_", " ") + " |")
    print("| --- | --- |" + " --- |" * len(Situation._fields))
    for logdir, (encoder, mdrnn) in zip(args.logdir, models, strict=True):
        mu = [latents(encoder, episode) for episode in episodes]
        inputs = {"z": mu}
        if mdrnn is not None:
            h = [memories(mdrnn, *both) for both in zip(episodes, mu, strict=True)]
            inputs["z and h"] = [torch.cat(both, dim=1) for both in zip(mu, h, strict=True)]
        seen = {
            name: [x[e.scored].double().numpy() for x, e in zip(values, episodes, strict=True)]
            for name, values in inputs.items()
        }
        if mdrnn is not None:
            for n in COMPONENTS:
                parts, share = principal(seen["z and h"], n)
                seen[f"their first {n} components ({share:.0%} of the variance)"] = parts
        for name, values in seen.items():
            scores = explained(values, situations)
            print(f"| {logdir} | {name} | " + " | ".join(f"{score:.2f}" for score in scores) + " |")


if __name__ == "__main__":
    run_script(main)
