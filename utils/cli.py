"""What the command lines share: options, their types, and errors for the person at the terminal."""

import argparse
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from utils.cores import available_cores
from utils.workers import STUCK_AFTER, Refused, WorkerError


class UserError(Refused):
    """Something that the person at the terminal can mend: one line that says what and how."""


def run_script(main: Callable[[], None]) -> None:
    """Run a script's main and turn foreseeable ends into messages and exit codes.

    A UserError or an error of the file system is one line and 2, workers that fail again
    and again their last traceback and 1, Ctrl-C one line and 130.
    """
    try:
        main()
    except Refused as error:
        print(f"{Path(sys.argv[0]).name}: error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(
            f"{Path(sys.argv[0]).name}: error: {where}{error.strerror or error}; "
            "what was there before is kept",
            file=sys.stderr,
        )
        sys.exit(2)
    except RuntimeError as error:
        if gpu_is_full(error):
            what = (
                "the GPU has not enough memory; use a smaller --max-workers or --batch-size (with "
                "--noreload) where the script has it, another GPU (--device cuda:N) or --device cpu"
            )
        elif gpu_fails(error):
            what = f"{first_line(error)}; {OTHER_DEVICE}"
        else:
            raise
        print(
            f"{Path(sys.argv[0]).name}: error: {what}; what was saved before is kept",
            file=sys.stderr,
        )
        sys.exit(2)
    except WorkerError as error:
        print(f"{Path(sys.argv[0]).name}: error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print(f"{Path(sys.argv[0]).name}: interrupted", file=sys.stderr)
        sys.exit(130)


def gpu_is_full(error: RuntimeError) -> bool:
    """Whether torch's allocator, CUDA (a context, pinned memory) or one of its libraries found no
    room.

    By name, because not every script imports torch.
    """
    # Of cuBLAS and cuDNN: no room for what they work in, or for themselves.
    libraries = ("_STATUS_ALLOC_FAILED", "_ALLOCATION_FAILED", "_STATUS_NOT_INITIALIZED")
    # The last one is what is left when no algorithm of a convolution finds room.
    signs = ("CUDA error: out of memory", *libraries, "unable to find an engine to execute")
    return type(error).__name__ == "OutOfMemoryError" or any(s in str(error) for s in signs)


def gpu_fails(error: Exception) -> bool:
    """Whether CUDA, its driver or one of its libraries said what went wrong."""
    signs = ("cuda", "cudnn", "cublas", "nvrtc", "nvidia driver", "hip error", "no kernel image")
    said = str(error).lower()
    return type(error).__name__ == "AcceleratorError" or any(sign in said for sign in signs)


OTHER_DEVICE = "use --device cpu, another GPU (--device cuda:N) or a torch that fits this GPU"


def first_line(error: BaseException) -> str:
    """What an error says, in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else type(error).__name__


@contextmanager
def dispensable(what: str) -> Iterator[None]:
    """A block for what is nice to have, which may fail for any reason: one line says so."""
    try:
        yield
    except Exception as error:
        print(f"{what} could not be made ({first_line(error)}); going on without", file=sys.stderr)


def positive_int(text: str) -> int:
    """argparse type: an integer of at least 1."""
    value = _number(int, text, "a whole number")
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {text}")
    return value


def natural_int(text: str) -> int:
    """argparse type: an integer of at least 0."""
    value = _number(int, text, "a whole number")
    if value < 0:
        raise argparse.ArgumentTypeError(f"must be at least 0, not {text}")
    return value


def population_int(text: str) -> int:
    """argparse type: what CMA-ES can work with; two candidates of each generation try its step."""
    value = positive_int(text)
    if value < 3:
        raise argparse.ArgumentTypeError(f"CMA-ES needs a population of at least 3, not {text}")
    return value


def seed_int(text: str) -> int:
    """argparse type: what every generator of random numbers takes as a seed."""
    value = natural_int(text)
    if value >= 2**63:
        raise argparse.ArgumentTypeError(f"must be below 2^63, not {text}")
    return value


def positive_float(text: str) -> float:
    """argparse type: a finite number above 0."""
    value = _number(float, text, "a number")
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be above 0 and finite, not {text}")
    return value


def finite_float(text: str) -> float:
    """argparse type: a number that is neither NaN nor infinite."""
    value = _number(float, text, "a number")
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"must be finite, not {text}")
    return value


def natural_float(text: str) -> float:
    """argparse type: 0 or a finite number above."""
    value = _number(float, text, "a number")
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be 0 or above and finite, not {text}")
    return value


def share_float(text: str) -> float:
    """argparse type: a number from 0 up to, but not, 1."""
    value = natural_float(text)
    if value >= 1:
        raise argparse.ArgumentTypeError(f"must be below 1, not {text}")
    return value


def picture_path(text: str) -> Path:
    """argparse type: the name of a picture that matplotlib is to draw."""
    path = Path(text)
    if path.suffix not in (".png", ".svg", ".pdf"):
        raise argparse.ArgumentTypeError(f"must end in .png, .svg or .pdf, not {text!r}")
    return path


def _number(kind: type, text: str, name: str):
    try:
        return kind(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be {name}, not {text!r}") from None


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        """One line, without the list of all options."""
        self.exit(2, f"{self.prog}: error: {message} (--help lists the options)\n")


class _Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """Prints a default where there is one to print."""

    def _get_help_string(self, action: argparse.Action) -> str:
        if action.default is None or action.default is False:
            return action.help
        return super()._get_help_string(action)


def script_parser(description: str) -> argparse.ArgumentParser:
    """A parser that prints the defaults and does not accept abbreviated options."""
    return _Parser(
        description=description,
        formatter_class=_Formatter,
        allow_abbrev=False,
    )


def add_logdir(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--logdir", type=Path, required=True, help="folder of the experiment, shared by all stages"
    )


def add_rootdir(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--rootdir",
        type=Path,
        default=Path("datasets/carracing"),
        help="folder of the episodes (npz), in any sub-folders",
    )


def add_seed(parser: argparse._ActionsContainer, what: str) -> None:
    parser.add_argument("--seed", type=seed_int, default=0, help=f"seed of {what}")


def add_device(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--device",
        default="auto",
        help="auto (the GPU where there is one), cpu, cuda or cuda:N",
    )


def add_max_workers(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--max-workers",
        type=positive_int,
        help="worker processes at most; worker i computes on GPU i modulo the visible GPUs, and "
        "says how much of its memory it holds. One of which nothing is heard for "
        f"{STUCK_AFTER // 60} minutes is killed, and its work done again (default: one for each "
        f"core, {available_cores()} here; on a Ray cluster all)",
    )


def add_ray_address(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--ray-address",
        metavar="ADDRESS",
        help="work on this Ray cluster, with all its cores or --max-workers of them: auto (the one "
        "that this machine belongs to), host:port, or local (one of this machine alone)",
    )


def add_noreload(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--noreload",
        action="store_true",
        help="start afresh; what is there is kept under a dated name",
    )
