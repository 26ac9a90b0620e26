"""A recording of what a player sees, as mp4."""

from pathlib import Path

import numpy as np
from PIL import Image

from envs.viewer import FRAMES_PER_SECOND

HEIGHT = 384  # of the film, in pixels; as wide for each picture


class Recording:
    """Writes every second step, as 25 frames a second: the pictures beside each other.

    Where only one is in view, its frame is in the middle.
    """

    def __init__(self, path: Path):
        import imageio.v2 as imageio

        self.path, self.steps = path, 0
        self.writer = imageio.get_writer(path, fps=FRAMES_PER_SECOND, macro_block_size=2)

    def add(self, pictures: dict[str, np.ndarray]) -> None:
        """pictures: (H, W, 3) uint8 each, one or two."""
        self.steps += 1
        if self.steps % 2 == 0:
            return
        film = np.zeros((HEIGHT, 2 * HEIGHT, 3), np.uint8)
        left = 0 if len(pictures) == 2 else HEIGHT // 2
        for frame in pictures.values():
            image = Image.fromarray(frame).resize((HEIGHT, HEIGHT), Image.Resampling.BILINEAR)
            film[:, left : left + HEIGHT] = np.asarray(image)
            left += HEIGHT
        self.writer.append_data(film)

    def end(self) -> Path:
        self.writer.close()
        return self.path
