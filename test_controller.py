"""Show and score a trained controller.

    python test_controller.py --logdir exp_dir

Opens a window where there is a display, and writes a video of the first episode to the
logdir where there is none. Prints the return of each episode, their mean and deviation.
"""

from argparse import Namespace
from contextlib import nullcontext
from pathlib import Path

import torch
from tqdm import tqdm

from envs.parallel import run_rollouts, start_workers
from envs.rollouts import play
from envs.simulated_carracing import Dream, Dreaming, load_world
from envs.simulator import MAX_STEPS, Simulator
from envs.tracks import track_seeds
from envs.viewer import VIDEO_SUFFIXES, Video, why_no_window, window_closed
from models.agent import AgentPolicy
from models.inference import tell_if_not_packed
from models.logdir import (
    DEFAULT,
    agent_digest,
    driving_with,
    load_agent,
    load_controller,
    load_vae,
    new_controller,
    stage_controller,
    stage_weights,
    versions,
    weights_digest,
)
from utils.cli import (
    UserError,
    add_device,
    add_logdir,
    add_max_workers,
    add_seed,
    positive_float,
    positive_int,
    run_script,
    script_parser,
)
from utils.devices import choose_device, fast_precision
from utils.scores import Scores, write_scores


def parse_arguments() -> Namespace:
    parser = script_parser("Show and score a trained controller.")
    add_logdir(parser)
    parser.add_argument("--episodes", type=positive_int, default=1, help="episodes to drive")
    add_seed(parser, "the tracks, none of which any training uses, and of --untrained")
    parser.add_argument(
        "--video",
        type=Path,
        help="write the first episode to this mp4 or gif, also where there is a display",
    )
    parser.add_argument("--json", type=Path, help="write the scores to this file")
    parser.add_argument(
        "--no-render", action="store_true", help="only score: no window and no video"
    )
    parser.add_argument(
        "--untrained", action="store_true", help="drive with a random controller, for comparison"
    )
    parser.add_argument(
        "--controller",
        choices=["ctrl", "dream"],
        default="ctrl",
        help="the one that was trained on real tracks, or with --dream in dreams",
    )
    parser.add_argument(
        "--last",
        action="store_true",
        help="the mean of the last generation, which no evaluation has chosen, instead of the best",
    )
    parser.add_argument(
        "--in-dream", action="store_true", help="drive in M's dream instead of on real tracks"
    )
    parser.add_argument(
        "--temperature", type=positive_float, default=1.0, help="of M's mixture in a dream"
    )
    parser.add_argument(
        "--horizon", type=positive_int, default=MAX_STEPS, help="steps of a dream at most"
    )
    add_max_workers(parser)
    add_device(parser)
    return parser.parse_args()


def choose_view(args: Namespace) -> Path | str | None:
    """Where the episodes are shown: a video's path, "window", or None; says why.

    Raises UserError for options that contradict each other.
    """
    if args.video is not None:
        if args.no_render:
            raise UserError("--video and --no-render contradict each other; leave one out")
        if args.video.suffix not in VIDEO_SUFFIXES:
            raise UserError(f"--video {args.video}: the name must end in .mp4 or .gif")
        if args.video.is_dir():
            raise UserError(f"--video {args.video}: that is a folder; name a file")
        return args.video
    if args.no_render:
        return None
    reason = "a dream has no window" if args.in_dream else why_no_window()
    if reason is None:
        print("view: a window (--video FILE writes a video, --no-render only scores)")
        return "window"
    name = "untrained" if args.untrained else {"ctrl": "controller"}.get(args.controller, "dream")
    video = args.logdir / f"{name}{'_in_dream' if args.in_dream else ''}.mp4"
    print(f"view: a video of the first episode, {video} ({reason})")
    return video


def main() -> None:
    args = parse_arguments()
    if args.last and args.untrained:
        raise UserError("--last and --untrained contradict each other; leave one out")
    device = choose_device(args.device)
    stage_weights(args.logdir, "vae")  # name the first stage that is missing
    if args.untrained:
        best = args.logdir / args.controller / "best.tar"
        # Of the same kind, where there is one.
        driving = load_controller(best)[1] if best.exists() else driving_with(args.logdir)
        trained_with = None
        torch.manual_seed(args.seed)
        controller = new_controller(driving)
        print(f"controller: random weights (--untrained, seed {args.seed})")
    else:
        path, controller, driving, state = stage_controller(args.logdir, args.controller, args.last)
        variant = "".join(
            f", {name} {value}"
            for name, value in driving._asdict().items()
            if value != getattr(DEFAULT, name)
        )
        print(f"controller: {path}, generation {state.get('epoch', '?')}{variant}")
        trained_with = state.get("conditions", state.get("about", {})).get("models")
    models = agent_digest(args.logdir, driving)
    if trained_with not in (None, models):
        print("note: V or M are not those that this controller was trained with")
    tell_if_not_packed(device)
    view = choose_view(args)
    parameters = controller.flat_parameters()[None]
    seeds = track_seeds("test", args.episodes, args.seed)
    world = dream = None
    if args.in_dream:
        if driving.memory == "random":
            raise UserError("--in-dream: this controller sees the state of another M, a random one")
        world, dream = load_world(args.logdir), Dreaming(args.temperature, args.horizon)
        seeds = [2**31 + seed for seed in seeds]  # so that no scores are of one seed and of both
        print(f"in M's dream: temperature {dream.temperature:g}, {dream.horizon} steps at most")
    watched = {"window": args.episodes, None: 0}.get(view, 1)
    returns, closed = [], False
    if watched:  # otherwise only the workers drive
        agent = load_agent(args.logdir, device, fast_precision(device), driving, models)
    for number, seed in enumerate(seeds[:watched]):
        try:
            mode = "human" if view == "window" else "rgb_array"
            simulator = Dream(world, [seed], dream) if world else Simulator([seed], mode)
            returns.append(watch_episode(agent, parameters, simulator, view, args))
        except WindowClosed as end:
            closed = True
            print(f"episode {number + 1}: the window was closed, {end}")
            break
        print(f"episode {number + 1}: return {returns[-1]:.1f}", flush=True)
    if closed and not returns:
        return
    watched = len(returns)
    rest = [] if closed else seeds[watched:]
    if rest:
        with (
            start_workers(
                args.logdir, device, args.max_workers, len(rest), models, driving
            ) as pool,
            tqdm(total=len(rest), unit="episode", desc="scoring", leave=False) as bar,
        ):
            scored = run_rollouts(pool, parameters.numpy(), rest, bar.update, dream=dream)[0][0]
        for number, value in enumerate(scored, start=watched + 1):
            print(f"episode {number}: return {value:.1f}")
        returns.extend(scored)
    scores = Scores(
        [float(value) for value in returns],
        seeds[: len(returns)],
        args.seed,
        f"{models}-{weights_digest(controller)[:16]}",
        versions(),
    )
    print(scores.summary())
    if args.json is not None:
        write_scores(args.json, scores)


class WindowClosed(Exception):
    """The user has seen enough; the message says how far the episode was."""


def watch_episode(agent, parameters: torch.Tensor, simulator, view: Path | str, args) -> float:
    """Drive the one episode of a simulator in the sight of the user; returns its return.

    Raises WindowClosed.
    """
    # One car gains nothing from more threads, and the video's encoder wants the other cores.
    torch.set_num_threads(1)
    recording = nullcontext() if view == "window" else Video(view, load_vae(args.logdir))
    steps, so_far = 0, 0.0
    try:
        with recording as video:

            def watch(ids, actions, frames, rewards, *_) -> None:
                nonlocal steps, so_far
                steps, so_far = steps + 1, so_far + float(rewards[0])
                # A window draws itself at each step, at 50 frames a second.
                if video is None:
                    if window_closed():
                        raise WindowClosed(f"after {steps} steps with a return of {so_far:.1f}")
                elif not video.failed:
                    with video.trying():
                        seen = simulator.frames(ids)[0] if args.in_dream else frames[0]
                        video.add(lambda: simulator.picture(0), seen)

            returns, _ = play(simulator, 1, 1, AgentPolicy(agent, parameters), watch)
    finally:
        simulator.close()
    if video is not None and not video.failed:
        print(f"video: {video.path}")
    return float(returns[0])


if __name__ == "__main__":
    run_script(main)
