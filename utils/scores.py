"""The returns in what test_controller.py prints, for the scripts that compare controllers."""

import re
from pathlib import Path

import numpy as np

from utils.cli import UserError


def read_returns(path: Path) -> tuple[dict[int, float], str]:
    """The return of each episode, by its number, and the tracks: "seed 0".

    Earlier versions had two simulators: "envpool, seed 0".

    Raises UserError for a file that is not all that test_controller.py printed.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist; keep what test_controller.py prints in it")
    text = path.read_text(errors="replace")
    found = re.findall(r"^episode (\d+): return (-?[\d.]+|nan)$", text, re.MULTILINE)
    simulator = r"(?: on (?:gymnasium|(envpool)))?"
    tracks = re.search(rf"^return .* episodes{simulator}, (seed \d+), ", text, re.MULTILINE)
    if not found or tracks is None:
        raise UserError(f"{path} has no returns; it must be all that test_controller.py printed")
    returns = {int(number): float(value) for number, value in found}
    if not np.isfinite(list(returns.values())).all():
        raise UserError(f"{path} has returns that are NaN: that controller is broken")
    return returns, ", ".join(part for part in tracks.groups() if part)
