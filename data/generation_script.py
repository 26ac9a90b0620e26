"""Play CarRacing with a random policy and write the episodes that V and M learn from.

    python data/generation_script.py --rollouts 1000 --rootdir datasets/carracing --threads 8

Episode k is `rootdir/thread_<k mod threads>/rollout_<k>.npz`, and depends on the policy, the
seed, the simulator and k alone. Run again, it makes only what is missing.
"""

import json
import re
import sys
from argparse import Namespace
from pathlib import Path

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from data.carracing import play_episodes
from data.episodes import BadEpisode, episode_length
from data.policies import POLICIES
from envs.simulator import choose_simulator
from utils.cli import (
    UserError,
    add_rootdir,
    add_seed,
    add_simulator,
    positive_int,
    run_script,
    script_parser,
)
from utils.files import atomic_write, exclusive
from utils.workers import WorkerPool

# Episodes that one process plays in lockstep: 12 MB of frames each.
BATCH = 8


def parse_arguments() -> Namespace:
    parser = script_parser("Play CarRacing with a random policy and write the episodes as npz.")
    parser.add_argument("--rollouts", type=positive_int, default=1000, help="episodes in all")
    add_rootdir(parser)
    parser.add_argument("--threads", type=positive_int, default=8, help="processes")
    parser.add_argument(
        "--policy",
        choices=list(POLICIES),
        default="brown",
        help="brown: random walk in the action box; white: independent actions",
    )
    add_seed(parser, "tracks and actions")
    add_simulator(parser)
    return parser.parse_args()


def setup_worker(index: int, policy: str, seed: int, simulator: str):
    """What a worker process does with a unit, a dict of episode numbers and their paths."""
    import torch

    torch.set_num_threads(1)

    def work(paths: dict[int, Path], report) -> None:
        play_episodes(paths, policy, seed, simulator, wrote=lambda k, steps: report((k, steps)))

    return work


def agree_with(rootdir: Path, args: Namespace) -> str:
    """Check the options against what made the episodes in `rootdir`, note them where it is new.

    Returns the simulator. Raises UserError on a contradiction.
    """
    note = rootdir / "generation.json"
    if note.exists():
        try:
            made = json.loads(note.read_text())
            made = {key: made[key] for key in ("policy", "seed", "simulator")}
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{note} is damaged; remove it, or use another --rootdir") from None
        asked = {"policy": args.policy, "seed": args.seed, "simulator": args.simulator}
        if args.simulator == "auto":
            asked["simulator"] = made["simulator"]
        for key, value in asked.items():
            if value != made[key]:
                raise UserError(
                    f"--{key} {value}: the episodes in {rootdir} were made with --{key} "
                    f"{made[key]}; use that, or another --rootdir"
                )
        return choose_simulator(made["simulator"])
    if any(rootdir.rglob("*.npz")):
        raise UserError(
            f"--rootdir {rootdir} holds episodes that this script did not make "
            f"({note.name} is missing); use another --rootdir"
        )
    simulator = choose_simulator(args.simulator)
    with atomic_write(note) as file:
        choice = {"policy": args.policy, "seed": args.seed, "simulator": simulator}
        file.write(json.dumps(choice).encode())
    return simulator


def existing_episodes(rootdir: Path) -> set[int]:
    """Numbers of the usable episodes that are there, whatever --threads was then."""
    numbers = set()
    for path in rootdir.glob("thread_*/rollout_*.npz"):
        match = re.fullmatch(r"rollout_(\d+)\.npz", path.name)
        if match:
            try:
                episode_length(path)
            except BadEpisode as reason:
                print(f"{path} is made again: {reason}")
                path.unlink()
            else:
                numbers.add(int(match[1]))
    return numbers


def generate(args: Namespace) -> None:
    """Make the episodes that are missing."""
    rootdir = args.rootdir
    simulator = agree_with(rootdir, args)
    there = existing_episodes(rootdir)
    missing = [k for k in range(args.rollouts) if k not in there]
    print(f"{rootdir}: {len(there)} episodes there, {len(missing)} of {args.rollouts} to make")
    if not missing:
        return

    workers = min(args.threads, len(missing))
    batch = min(BATCH, -(-len(missing) // workers))
    paths = {k: rootdir / f"thread_{k % args.threads}" / f"rollout_{k}.npz" for k in missing}
    units = [
        {k: paths[k] for k in missing[start : start + batch]}
        for start in range(0, len(missing), batch)
    ]

    made: dict[int, int] = {}
    with tqdm(total=len(missing), unit="episode", desc="generating") as bar:

        def news(content: tuple[int, int]) -> None:
            number, steps = content
            made[number] = steps
            bar.n = len(made)
            frames = sum(made.values())
            bar.set_postfix_str(f"{frames / max(bar.format_dict['elapsed'], 1e-9):.0f} frames/s")

        with WorkerPool(
            workers, setup_worker, (args.policy, args.seed, simulator), rootdir / "logs"
        ) as pool:
            for _ in pool.run(units, news):
                pass
    print(f"{rootdir}: {len(made)} episodes written, {sum(made.values())} frames")


def main() -> None:
    args = parse_arguments()
    with exclusive(args.rootdir, "generation"):
        generate(args)


if __name__ == "__main__":
    run_script(main)
