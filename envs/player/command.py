"""Play in the dream, in a page of the browser or in a window.

python -m envs.simulated_carracing --logdir exp_dir
"""

import argparse
from pathlib import Path

import torch

from envs.player.game import Driver, Game
from envs.simulated_carracing import Dreaming, load_world
from envs.simulator import MAX_STEPS, environment
from models.logdir import driving_with, load_agent, load_controller
from utils.cli import (
    add_logdir,
    add_seed,
    natural_int,
    positive_float,
    positive_int,
    script_parser,
)


def parse_arguments() -> argparse.Namespace:
    parser = script_parser("Play in M's dream of CarRacing, and on the real track beside it.")
    add_logdir(parser)
    parser.add_argument("--window", action="store_true", help="in a window instead of a browser")
    parser.add_argument(
        "--controller",
        choices=["ctrl", "dream"],
        default="ctrl",
        help="which one takes the wheel: trained on real tracks, or with --dream in dreams",
    )
    parser.add_argument(
        "--temperature", type=positive_float, default=1.0, help="of M's mixture at the beginning"
    )
    parser.add_argument(
        "--horizon", type=positive_int, default=MAX_STEPS, help="steps of a dream at most"
    )
    add_seed(parser, "the first dream and track")
    page = parser.add_argument_group("the page")
    page.add_argument(
        "--host", default="127.0.0.1", help="where to listen; others than this one let others play"
    )
    page.add_argument("--port", type=port_int, default=8000, help="0 for any free one")
    page.add_argument(
        "--players", type=positive_int, default=4, help="pages at a time, with a dream for each"
    )
    return parser.parse_args()


def port_int(text: str) -> int:
    """argparse type: a port, or 0."""
    port = natural_int(text)
    if port >= 2**16:
        raise argparse.ArgumentTypeError(f"must be below 65536, not {text}")
    return port


def load_driver(logdir: Path, stage: str) -> Driver:
    """The controller in the logdir, with V for the hands' own driving where there is none."""
    path, parameters, missing = logdir / stage / "best.tar", None, ""
    driving = driving_with(logdir)
    if not path.exists():
        missing = f"there is no controller at {path}"
    else:
        controller, driving, _ = load_controller(path)
        if driving.memory == "random":
            missing = "the controller sees the state of another M, a random one"
        else:
            parameters = controller.flat_parameters()
    agent = load_agent(logdir, torch.device("cpu"), torch.float32, driving)
    return Driver(agent, parameters, missing)


def main() -> None:
    args = parse_arguments()
    torch.set_num_threads(1)  # a picture at a time gains nothing from more
    world, driver = load_world(args.logdir), load_driver(args.logdir, args.controller)
    environment()  # compiles what draws, where that was not done before

    def new_game(seed: int) -> Game:
        return Game(world, driver, Dreaming(args.temperature, args.horizon), seed)

    if args.window:
        from envs.player.window import play

        play(new_game(args.seed))
    else:
        from envs.player.server import serve

        serve(new_game, args.host, args.port, args.players, args.seed)
