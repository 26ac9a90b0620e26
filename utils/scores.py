"""Scores of a controller, as `test_controller.py --json` writes them, for what compares them."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from utils.cli import UserError
from utils.files import atomic_write


class Scores(NamedTuple):
    """The returns of one controller on the test tracks of a seed."""

    returns: list[float]  # of each episode
    tracks: list[int]  # the seed of each episode's environment
    seed: int  # --seed, from which the tracks are drawn
    controller: str  # fingerprint of V, M and C
    versions: dict[str, str]

    def summary(self) -> str:
        """One line: mean, standard deviation, minimum."""
        returns = np.array(self.returns)
        return (
            f"return {returns.mean():.1f} +- {returns.std():.1f} (mean +- standard deviation) over "
            f"{len(returns)} episodes, seed {self.seed}, minimum {returns.min():.1f}, "
            f"{np.mean(returns > 900):.0%} over 900"
        )


def write_scores(path: Path, scores: Scores) -> None:
    with atomic_write(path) as file:
        file.write((json.dumps(scores._asdict()) + "\n").encode())


def read_scores(path: Path) -> Scores:
    """Raises UserError for a file that is not one of scores, or has returns that are NaN."""
    advice = "write it with test_controller.py --json"
    if not path.is_file():
        raise UserError(f"{path} does not exist; {advice}")
    try:
        scores = Scores(**json.loads(path.read_bytes()))
        finite = bool(np.isfinite(scores.returns).all())
        alike = len(scores.returns) == len(scores.tracks) > 0
    except (ValueError, TypeError):
        raise UserError(f"{path} holds no scores; {advice}") from None
    if not alike:
        raise UserError(f"{path} does not have a track for each return; {advice}")
    if not finite:
        raise UserError(f"{path} has returns that are NaN: that controller is broken")
    return scores
