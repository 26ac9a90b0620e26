"""Functions that Numba compiles, once for an installation."""

import atexit
import functools
import os
import shutil
import tempfile
from collections.abc import Callable

import numba
from numba.core import event

# Without reference counts, which took as long as all else in such small functions. Arrays are
# therefore made elsewhere. Division by zero gives infinity, as in NumPy.
OPTIONS = {"nogil": True, "error_model": "numpy", "_nrt": False}


def compiled(function: Callable) -> Callable:
    """A part of a `kept` function in the same file, which becomes a part of its code.

    For a call hands over seven numbers for each array, which takes longer than small functions do.
    """
    return numba.njit(**OPTIONS, forceinline=True)(function)


def kept(function: Callable) -> Callable:
    """A function that is compiled when it is called first, and kept on disk.

    In Numba's folder, which is `__pycache__` beside the file, else one in the user's cache. Where
    neither can be written to, in a temporary one, which the processes share that this one starts.
    What it calls must be in its own file, for Numba compiles again only what changed in that.
    """
    event.register("numba:compile", _teller())
    try:
        return numba.njit(**OPTIONS, cache=True)(function)
    except RuntimeError:  # Numba found no folder
        _keep_for_this_run()
        return numba.njit(**OPTIONS, cache=True)(function)


def _keep_for_this_run() -> None:
    """Have Numba keep what it compiles in a folder that goes with this process.

    In the environment, so that the workers find it there instead of compiling all at once.
    """
    folder = tempfile.mkdtemp(prefix="compiled-")
    os.environ["NUMBA_CACHE_DIR"] = numba.config.CACHE_DIR = folder
    atexit.register(shutil.rmtree, folder, ignore_errors=True)


class _Teller(event.Listener):
    """Says on one line that something is being compiled, once for a process."""

    def __init__(self):
        self.reported = False

    def on_start(self, event: event.Event) -> None:
        if not self.reported:
            self.reported = True
            folder = event.data["dispatcher"].stats.cache_path
            print(f"compiling the loops that draw, some 10 s (kept in {folder})", flush=True)

    def on_end(self, event: event.Event) -> None:
        pass


@functools.cache
def _teller() -> _Teller:
    return _Teller()
