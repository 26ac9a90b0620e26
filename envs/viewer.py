"""What a spectator sees of an episode: a window, or a video file with V's view beside it."""

import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

import numpy as np
import torch
from PIL import Image

from models.inference import inference_encoder
from models.vae import VAE
from utils.cli import first_line
from utils.files import TEMPORARY
from utils.frames import pixels_to_unit, to_64, unit_to_pixels

FRAMES_PER_SECOND = 25  # of a video, which has every second step of the 50 in a second
GIF_STEPS = 4  # of a gif one frame, and 64 colours for all, so that a lap has 2 MB and not 20
GIF_COLOURS = 64
VIDEO_SUFFIXES = (".mp4", ".gif")
PANEL = 200  # side of the pictures beside the car's, in pixels


def why_no_window() -> str | None:
    """Why no window can be opened, or None where one can."""
    announced = os.environ.get("WAYLAND_DISPLAY") or os.environ.get("DISPLAY")
    if not announced and sys.platform != "darwin":
        return "there is no display for a window"
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of pygame, about its own imports
        import pygame
    try:
        pygame.display.init()
        driver = pygame.display.get_driver()
    except pygame.error as error:
        return f"the display {announced} cannot be opened: {error}"
    finally:
        pygame.display.quit()
    # What SDL takes where no display answers; a user who asks for one of them by name gets it.
    if driver in ("offscreen", "dummy") and driver != os.environ.get("SDL_VIDEODRIVER"):
        return f"the display {announced} cannot be opened"
    return None


def window_closed() -> bool:
    """Whether the user closed the window, or pressed Escape or Q in it, since the last call."""
    import pygame

    if not pygame.display.get_init():
        return False
    events = pygame.event.get((pygame.QUIT, pygame.KEYDOWN))
    keys = (pygame.K_ESCAPE, pygame.K_q)
    return any(event.type == pygame.QUIT or event.key in keys for event in events)


def write_gif(path: Path, frames: list[Image.Image]) -> None:
    """Write pictures of one size, one each GIF_STEPS steps, in one palette for all."""
    some = frames[:: max(1, len(frames) // 16)]
    together = Image.fromarray(np.concatenate([np.asarray(frame) for frame in some]))
    palette = together.quantize(GIF_COLOURS)
    first, *others = (frame.quantize(palette=palette, dither=0) for frame in frames)
    duration = 1000 * GIF_STEPS // (2 * FRAMES_PER_SECOND)  # milliseconds
    first.save(path, save_all=True, append_images=others, duration=duration, loop=0)


class Video:
    """Writes an episode as mp4 or gif: the car (400, 600), beside it what V sees and keeps of it.

    A context, at whose end the file takes its name; an error, or Ctrl-C, leaves nothing of it. What
    keeps it from being made is said on a line, and costs the video alone. A gif has half the size
    and half the frames.
    """

    def __init__(self, path: Path, vae: VAE):
        self.path, self.failed, self.writer = path, False, None
        self.unfinished = path.with_name(f".{path.stem}.{os.getpid()}{TEMPORARY}{path.suffix}")
        with self.trying():
            self._open(vae)

    @contextmanager
    def trying(self) -> Iterator[None]:
        """A block that makes a part of the video; nothing is to be tried once it `failed`."""
        try:
            yield
        except Exception as error:  # of the file system, the encoder, or what draws
            self.failed = True
            print(
                f"video: {self.path} cannot be made ({first_line(error)}); driving goes on",
                file=sys.stderr,
            )

    def _open(self, vae: VAE) -> None:
        self.decoder = vae.decoder.eval()
        self.encoder = inference_encoder(vae.encoder, torch.device("cpu"), torch.float32)
        self.gif = self.path.suffix == ".gif"
        self.steps = 0
        self.frames: list[Image.Image] = []  # of a gif
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.unfinished.touch()  # ffmpeg opens it too late to be asked why it cannot
        if not self.gif:
            import imageio.v2 as imageio

            self.writer = imageio.get_writer(
                self.unfinished, fps=FRAMES_PER_SECOND, macro_block_size=2
            )

    @torch.inference_mode()
    def add(self, draw: Callable[[], np.ndarray], observation: np.ndarray) -> None:
        """A step: `draw` gives the car's picture (400, 600, 3) uint8; observation (96, 96, 3)."""
        self.steps += 1
        if (self.steps - 1) % (GIF_STEPS if self.gif else 2):
            return
        seen = to_64(torch.from_numpy(np.ascontiguousarray(observation))[None])
        kept = unit_to_pixels(self.decoder(self.encoder.mean(pixels_to_unit(seen))))[0].numpy()
        panels = [
            np.asarray(Image.fromarray(view).resize((PANEL, PANEL), Image.Resampling.NEAREST))
            for view in (seen[0].numpy(), kept)
        ]
        frame = np.concatenate([draw(), np.concatenate(panels)], axis=1)
        if self.gif:
            self.frames.append(Image.fromarray(np.ascontiguousarray(frame[::2, ::2])))
        else:
            self.writer.append_data(frame)

    def _finish(self) -> None:
        import imageio.v2 as imageio

        if self.gif:
            write_gif(self.unfinished, self.frames)
        # ffmpeg does not tell of a disk that is full: what it left cannot be read.
        with imageio.get_reader(self.unfinished) as reader:
            reader.get_data(0)
        os.replace(self.unfinished, self.path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error: type[BaseException] | None, *_) -> None:
        with self.trying():
            if self.writer is not None:
                self.writer.close()
            if error is None and not self.failed:
                self._finish()
        with suppress(OSError):  # of a folder that cannot be written to, which has been said
            self.unfinished.unlink(missing_ok=True)
