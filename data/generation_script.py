"""Play CarRacing and write the episodes that V and M learn from.

    python data/generation_script.py --rollouts 1000 --rootdir datasets/carracing --threads 8

Episode k is `rootdir/thread_<k mod threads>/rollout_<k>.npz`, and depends on the policy, the
seed, --patience and k alone (and on the controller, --noise and --bursts, where one drives). Run
again, it makes only what is missing. Data sets of several policies lie in sub-folders of one
folder, which is then V's and M's --rootdir.
"""

import json
import re
import sys
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from data.episodes import BadEpisode, episode_length, writing
from data.playing import BATCH, Driver, load_driver, setup_elsewhere, setup_worker
from data.policies import RANDOM_POLICIES
from envs.parallel import cluster_pool
from envs.simulator import environment
from models.inference import tell_if_not_packed
from models.parcel import pack
from utils.cli import (
    UserError,
    add_ray_address,
    add_rootdir,
    add_seed,
    natural_float,
    natural_int,
    positive_int,
    run_script,
    script_parser,
    share_float,
)
from utils.devices import choose_device
from utils.files import atomic_write, exclusive
from utils.workers import STUCK_AFTER, WorkerPool

if TYPE_CHECKING:
    from utils.cluster import RayPool

NOISE = 0.05  # the default of --noise


def parse_arguments() -> Namespace:
    parser = script_parser("Play CarRacing and write the episodes as npz.")
    parser.add_argument("--rollouts", type=positive_int, default=1000, help="episodes in all")
    add_rootdir(parser)
    parser.add_argument(
        "--threads",
        type=positive_int,
        default=8,
        help="folders, and processes (the name is that of an earlier implementation), of 1 GiB "
        f"each. One of which nothing is heard for {STUCK_AFTER // 60} minutes is killed, its work "
        "done again",
    )
    parser.add_argument(
        "--policy",
        choices=[*RANDOM_POLICIES, "controller"],
        default="brown",
        help="brown: random walk in the action box; white: independent actions; controller: "
        "the trained one of --logdir, for a second round of data where it drives",
    )
    parser.add_argument("--logdir", type=Path, help="experiment whose controller drives")
    parser.add_argument(
        "--controller",
        choices=["ctrl", "dream"],
        default="ctrl",
        help="which of its controllers: trained on real tracks, or with --dream in dreams",
    )
    parser.add_argument(
        "--last",
        action="store_true",
        help="the mean of the last generation instead of the best: in dreams it has found out what "
        "fools M",
    )
    parser.add_argument(
        "--noise",
        type=natural_float,
        default=NOISE,
        help="standard deviation of the noise on each episode's controller weights",
    )
    parser.add_argument(
        "--bursts",
        type=share_float,
        default=0.0,
        help="share of the steps in which a random walk drives instead of the controller, for "
        "half a second or so at a time: data for a dream, whose M else takes what a good driver "
        "does for the cause of where the road goes",
    )
    parser.add_argument(
        "--patience",
        type=natural_int,
        default=0,
        help="end an episode after so many steps without a new tile, so that a car that left the "
        "road does not fill the data with one view; 0: never. M dreams "
        "that a road soon comes back if no episode shows that none does",
    )
    add_seed(parser, "tracks and actions")
    add_ray_address(parser)
    parser.add_argument(
        "--max-workers",
        type=positive_int,
        help="workers on the Ray cluster at most, of 1 GiB each (default: one for each core)",
    )
    return parser.parse_args()


def agree_with(rootdir: Path, args: Namespace, driver: Driver | None) -> None:
    """Check the options against what made the episodes in `rootdir`, note them where it is new.

    Raises UserError on a contradiction.
    """
    note = rootdir / "generation.json"
    asked = {
        "policy": args.policy,
        "seed": args.seed,
        "patience": args.patience,
    }
    if driver is None:
        for option, given in (
            ("--logdir", args.logdir is not None),
            ("--controller", args.controller != "ctrl"),
            ("--last", args.last),
            ("--noise", args.noise != NOISE),
            ("--bursts", args.bursts != 0),
        ):
            if given:
                raise UserError(f"{option} is for --policy controller, not {args.policy}")
    else:
        asked |= {"noise": args.noise, "bursts": args.bursts, "logdir": driver.digest}
    if note.exists():
        try:
            made = json.loads(note.read_text())
            made = {key: made[key] for key in ("policy", "seed", *made)}
            made = {"patience": 0, "bursts": 0.0} | made  # of a data set from before the options
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UserError(f"{note} is damaged; remove it, or use another --rootdir") from None
        for key, value in asked.items():
            if value != made.get(key):
                if key == "logdir":
                    raise UserError(
                        f"--logdir {args.logdir}: the episodes in {rootdir} were driven by another "
                        "controller; use another --rootdir"
                    )
                raise UserError(
                    f"--{key} {value}: the episodes in {rootdir} were made with --{key} "
                    f"{made.get(key)}; use that, or another --rootdir"
                )
        if made.get("simulator") == "envpool":
            print(
                f"{rootdir}: begun on EnvPool, which is no longer used; its episodes stay, and the "
                "missing ones are driven on Gymnasium's CarRacing"
            )
        return
    if any(rootdir.rglob("*.npz")):
        raise UserError(
            f"--rootdir {rootdir} holds episodes that this script did not make "
            f"({note.name} is missing); use another --rootdir"
        )
    with atomic_write(note) as file:
        file.write(json.dumps(asked).encode())


def existing_episodes(rootdir: Path) -> set[int]:
    """Numbers of the usable episodes that are there, whatever --threads was then."""
    numbers = set()
    for path in rootdir.glob("thread_*/rollout_*.npz"):
        match = re.fullmatch(r"rollout_(\d+)\.npz", path.name)
        if match:
            try:
                episode_length(path)
            except BadEpisode as reason:
                if isinstance(reason.__cause__, OSError):  # may be away for the moment
                    raise UserError(f"{path} cannot be read: {reason}") from None
                print(f"{path} is made again: {reason}")
                path.unlink()
            else:
                numbers.add(int(match[1]))
    return numbers


def start_workers(args: Namespace, driver: Driver | None, episodes: int) -> "WorkerPool | RayPool":
    """Processes that play, or the workers of a Ray cluster."""
    arguments = (args.policy, args.seed, args.patience, driver, args.noise, args.bursts)
    logs = args.rootdir / "logs"
    if args.ray_address is None:
        environment()  # compiles what the processes draw with
        return WorkerPool(min(args.threads, episodes), setup_worker, arguments, logs)
    packed = None if driver is None else pack(driver.logdir)
    most = min(episodes, args.max_workers or episodes)
    return cluster_pool(args.ray_address)(most, setup_elsewhere, (packed, *arguments), logs)


def generate(args: Namespace) -> None:
    """Make the episodes that are missing."""
    rootdir = args.rootdir
    driver = None
    if args.policy == "controller":
        if args.logdir is None:
            raise UserError("--policy controller needs the --logdir whose controller drives")
        driver = load_driver(args.logdir, args.controller, args.last)
        if args.bursts and driver.driving.actions == "squash":
            raise UserError(
                f"--bursts is for controllers with --actions clip; that of {args.logdir} has squash"
            )
    agree_with(rootdir, args, driver)
    there = existing_episodes(rootdir)
    missing = [k for k in range(args.rollouts) if k not in there]
    print(f"{rootdir}: {len(there)} episodes there, {len(missing)} of {args.rollouts} to make")
    if not missing:
        return

    if driver is not None:
        tell_if_not_packed(choose_device("cpu"))
    paths = {k: rootdir / f"thread_{k % args.threads}" / f"rollout_{k}.npz" for k in missing}
    made: dict[int, int] = {}
    with (
        start_workers(args, driver, len(missing)) as pool,
        tqdm(total=len(missing), unit="episode", desc="generating") as bar,
    ):

        def receive(content: tuple[int, int] | tuple[int, int, bytes]) -> None:
            number, steps, *files = content
            for file in files:  # of a worker on another machine
                with writing(paths[number]) as here:
                    here.write(file)
            made[number] = steps
            bar.n = len(made)
            frames = sum(made.values())
            bar.set_postfix_str(f"{frames / max(bar.format_dict['elapsed'], 1e-9):.0f} frames/s")

        batch = min(BATCH, -(-len(missing) // len(pool)))
        units = [
            {k: paths[k] for k in missing[start : start + batch]}
            for start in range(0, len(missing), batch)
        ]
        for _ in pool.run(units, receive):
            pass
    if len(made) < len(missing):
        raise UserError(
            f"{len(missing) - len(made)} of {len(missing)} episodes ended in actions or rewards "
            "that are NaN and were not written; train what drives them again"
        )
    print(f"{rootdir}: {len(made)} episodes written, {sum(made.values())} frames")


def main() -> None:
    args = parse_arguments()
    with exclusive(args.rootdir, "generation"):
        generate(args)


if __name__ == "__main__":
    run_script(main)
