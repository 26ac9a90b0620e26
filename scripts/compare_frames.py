"""Compare whole episodes of the CarRacing that is driven here with Gymnasium's own, bit for bit.

    python scripts/compare_frames.py --tracks 200 --processes 2

Each track is driven in one of several ways, in turn. Prints how many frames were compared and how
many differed, and ends with exit code 1 where a frame, a reward or an end differed.
"""

import multiprocessing as mp
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import gymnasium as gym
import numpy as np
import torch
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from data.policies import RANDOM_POLICIES
from envs.simulator import MAX_STEPS, Simulator
from models.agent import AgentPolicy
from models.logdir import load_agent, load_controller
from utils.cli import positive_int, run_script, script_parser, seed_int
from utils.cores import available_cores

Way = Callable[[int, np.ndarray], np.ndarray]  # (step, frame) -> action


class Compared(NamedTuple):
    """One episode: its way, its frames, how many differed, and what else did."""

    way: str
    frames: int
    differing: int
    other: str


def ways(seed: int) -> dict[str, Callable[[], Way]]:
    """How a track is driven."""

    def random(name: str) -> Way:
        actions = RANDOM_POLICIES[name](MAX_STEPS, np.random.default_rng(seed))
        return lambda step, frame: actions[step]

    def always(*action: float) -> Way:
        return lambda step, frame: np.array(action, np.float32)

    def spinning(step: int, frame: np.ndarray) -> np.ndarray:
        """Full gas, then the wheel turned to one side and to the other, the brakes locked."""
        phase = step // 40 % 5
        return np.array([(0, 1, -1, 0, 1)[phase], phase < 3, phase == 4], np.float32)

    def shipped() -> Way:
        torch.set_num_threads(1)
        agent = load_agent(ROOT / "pretrained", torch.device("cpu"), torch.float32)
        controller, _, _ = load_controller(ROOT / "pretrained" / "ctrl" / "best.tar")
        policy = AgentPolicy(agent, controller.flat_parameters()[None])
        return lambda step, frame: policy(np.arange(1), frame[None])[0]

    return {
        "brownian": lambda: random("brown"),
        "shipped controller": shipped,
        "full gas": lambda: always(0, 1, 0),  # off the field in the end
        "circles": lambda: always(0.3, 0.5, 0),
        "spinning": lambda: spinning,
        "at rest": lambda: always(0, 0, 1),
        "white noise": lambda: random("white"),
        "backwards": lambda: always(-1, 1, 0),
    }


def episodes(seed: int, way: Way, steps: int) -> Iterator[tuple]:
    """Drive a track here and in Gymnasium: (frame, reward, terminated) of both, step by step."""
    theirs = gym.make("CarRacing-v3", disable_env_checker=True)
    ours, ids = Simulator([seed]), np.arange(1)
    frame, _ = theirs.reset(seed=seed)
    yield (ours.reset(ids)[0], np.float32(0), False), (frame, np.float32(0), False)
    for step in range(steps):
        action = way(step, frame)
        frame, reward, terminated, _, _ = theirs.step(action)
        (our_frame,), (our_reward,), (our_end,), _ = ours.step(ids, action[None])
        yield (our_frame, our_reward, our_end), (frame, np.float32(reward), terminated)
        if terminated or our_end:
            break
    ours.close()
    theirs.close()


def compare(job: tuple[int, str, int]) -> Compared:
    """Compare one episode of (seed, way, steps)."""
    seed, name, steps = job
    frames, differing, other = 0, 0, ""
    for ours, theirs in episodes(seed, ways(seed)[name](), steps):
        differing += not np.array_equal(ours[0], theirs[0])
        frames += 1
        if ours[1:] != theirs[1:] and not other:
            other = f"track {seed}, frame {frames}: {ours[1:]} instead of {theirs[1:]}"
    return Compared(name, frames, differing, other)


def main() -> None:
    parser = script_parser("Compare episodes with Gymnasium's own, frame by frame.")
    parser.add_argument("--tracks", type=positive_int, default=200, help="tracks to drive")
    parser.add_argument("--seed", type=seed_int, default=0, help="seed of the first track")
    parser.add_argument("--steps", type=positive_int, default=MAX_STEPS, help="steps at most")
    parser.add_argument(
        "--processes", type=positive_int, default=available_cores(), help="processes"
    )
    args = parser.parse_args()
    names = list(ways(0))
    jobs = [
        (seed, names[seed % len(names)], args.steps)
        for seed in range(args.seed, args.seed + args.tracks)
    ]
    results: list[Compared] = []
    with mp.get_context("spawn").Pool(args.processes) as pool:
        for result in tqdm(pool.imap_unordered(compare, jobs), total=len(jobs), unit="track"):
            results.append(result)
            if result.differing or result.other:
                tqdm.write(f"{result.way}: {result.differing} frames differ. {result.other}")
    for name in names:
        of_way = [r for r in results if r.way == name]
        frames, differing = sum(r.frames for r in of_way), sum(r.differing for r in of_way)
        print(f"{name}: {len(of_way)} tracks, {frames} frames, {differing} differ")
    differing, other = sum(r.differing for r in results), sum(bool(r.other) for r in results)
    print(
        f"{len(results)} tracks, {sum(r.frames for r in results)} frames compared, {differing} "
        f"differ; rewards or ends differ in {other} episodes"
    )
    sys.exit(bool(differing or other))


if __name__ == "__main__":
    run_script(main)
