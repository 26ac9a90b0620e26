"""Record the player's page as a gif: the controller drives in a dream, then beside the real track.

    python scripts/record_page.py --logdir exp_dir --to docs/dream.gif

Needs playwright (requirements-dev.txt) and a Chromium.
"""

import argparse
import io
import re
import shutil
import subprocess
import sys
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from envs.viewer import GIF_STEPS, write_gif
from utils.cli import UserError, add_logdir, add_seed, positive_int, run_script, script_parser

SIZE = {"width": 880, "height": 560}
TIMES = 3  # a dream begins beside the real track, each where the real car is by then


def record(page, address: str, seed: int, alone: int, beside: int) -> list[Image.Image]:
    """Frames of so many steps in a dream, and then beside the real track, some times anew.

    In single steps, so that none is missed however fast this machine is.
    """
    page.goto(f"{address}?seed={seed}")
    page.wait_for_function("state && state.dream.steps > 0")
    press(page, "p", "state.paused")
    press(page, "m", "state.drives")
    frames = film(page, alone)
    press(page, "Tab", "state.view === 'real'")
    advance(page, "real", 80)  # until the view is near
    for time in range(TIMES):
        if time:
            press(page, "b", "state.view === 'dream'")
        press(page, "b", "state.view === 'both'")
        frames += film(page, beside)
    return frames


def press(page, key: str, until: str) -> None:
    page.keyboard.press(key)
    page.wait_for_function(until)


def film(page, steps: int) -> list[Image.Image]:
    frames = []
    for _ in range(steps // GIF_STEPS):
        advance(page, "dream", GIF_STEPS)
        frames.append(Image.open(io.BytesIO(page.screenshot())).convert("RGB"))
    return frames


def advance(page, side: str, steps: int) -> None:
    for _ in range(steps):
        before = page.evaluate(f"state.{side}.steps")
        page.keyboard.press("n")
        page.wait_for_function(f"state.{side}.steps !== {before} || state.{side}.ended")


def gif_path(text: str) -> Path:
    """argparse type: the name of a gif."""
    if not text.endswith(".gif"):
        raise argparse.ArgumentTypeError(f"must end in .gif, not {text!r}")
    return Path(text)


def main() -> None:
    parser = script_parser("Record the player's page as a gif.")
    add_logdir(parser)
    parser.add_argument("--to", type=gif_path, default="dream.gif", help="the gif to write")
    parser.add_argument(
        "--controller", choices=["ctrl", "dream"], default="ctrl", help="which one drives"
    )
    parser.add_argument("--alone", type=positive_int, default=100, help="steps in a dream alone")
    parser.add_argument(
        "--beside", type=positive_int, default=48, help=f"steps of both, {TIMES} times"
    )
    add_seed(parser, "the dream and the track")
    args = parser.parse_args()
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        raise UserError("there is no Chromium on this machine; install one")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        raise UserError("playwright is missing; pip install -r requirements-dev.txt") from None

    command = [sys.executable, "-m", "envs.simulated_carracing", "--port", "0"]
    command += ["--logdir", str(args.logdir.resolve()), "--controller", args.controller]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as server:
        try:
            addresses = (re.search(r"http\S+", line) for line in server.stdout)
            address = next(filter(None, addresses), None)
            if address is None:
                raise UserError(f"there is nothing to play in {args.logdir}; see above")
            with sync_playwright() as started:
                browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
                page = browser.new_page(viewport=SIZE)
                frames = record(page, address[0], args.seed, args.alone, args.beside)
                browser.close()
        finally:
            server.terminate()
    args.to.parent.mkdir(parents=True, exist_ok=True)
    write_gif(args.to, frames)
    print(f"{args.to}: {len(frames)} frames, {args.to.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    run_script(main)
