"""Worker processes that take units of work, die, and are replaced.

The pool knows nothing of what a unit is. A unit's result must depend on the unit alone,
so that doing it again on a fresh worker gives what the lost one would have given.
"""

import multiprocessing as mp
import os
import signal
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

# Workers that may raise in a row without one unit finished, before the pool gives up; and
# those that may be killed: what kills them from outside may pass, what they raise will not.
MAX_ERRORS = 3
MAX_KILLS = 20


class WorkerError(Exception):
    """The workers failed again and again; the message holds the last one's own traceback."""


class Refused(Exception):
    """Raised in a worker: what it was asked to do cannot be done, and trying again is no use.

    The pool raises it in the parent.
    """


# setup(worker's index, *arguments) -> work(unit, report) -> result
Work = Callable[[Any, Callable[[Any], None]], Any]


class WorkerPool:
    """`count` processes, each of which calls `setup(index, *arguments)` once and then works.

    `setup` is a function of a module (it travels by name). It returns `work(unit, report)`,
    which returns the unit's result and may call `report(news)` on the way. What a worker
    prints goes to `log_dir/worker_<index>.log`. A context manager: at its end all workers
    are gone.
    """

    def __init__(self, count: int, setup: Callable[..., Work], arguments: tuple, log_dir: Path):
        log_dir.mkdir(parents=True, exist_ok=True)
        self._context = mp.get_context("spawn")  # fork would copy torch's and CUDA's state
        self._setup, self._arguments, self._log_dir = setup, arguments, log_dir
        self._reported = False
        self._workers = [self._start(index) for index in range(count)]

    def _start(self, index: int) -> tuple[mp.Process, Connection]:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(
            target=_work_until_closed,
            args=(index, self._setup, self._arguments, theirs, self._log_dir),
            name=f"worker_{index}",
            daemon=True,
        )
        # Ctrl-C is the parent's business: a worker inherits the block, and keeps it. The helper of
        # multiprocessing would lift it, were it started together with the first worker.
        resource_tracker.ensure_running()
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        theirs.close()  # so that the worker's death is the end of the pipe
        return process, ours

    def run(
        self, units: Sequence[Any], news: Callable[[Any], None] | None = None
    ) -> Iterator[tuple[int, Any]]:
        """Share `units` out and yield (index of the unit, result) as they are finished.

        Units are given out in their order, one a worker at a time: put the longest first.
        A worker that dies or raises is replaced and its unit is done again, with one line on
        the terminal. Raises WorkerError after MAX_ERRORS errors or MAX_KILLS kills without a
        result, and Refused when a worker does.
        """
        waiting = deque(range(len(units)))
        busy: dict[int, int] = {}  # worker -> unit
        errors = kills = 0
        missing = len(units)
        while missing:
            for index, (_, connection) in enumerate(self._workers):
                if index not in busy and waiting:
                    unit = waiting.popleft()
                    with suppress(OSError):  # of a worker that is dead: found out below
                        connection.send(units[unit])
                    busy[index] = unit
            ready = wait([self._workers[index][1] for index in busy])
            for index in [i for i in busy if self._workers[i][1] in ready]:
                process, connection = self._workers[index]
                try:
                    kind, content = connection.recv()
                except (EOFError, OSError):
                    process.join()
                    kind = "kill" if process.exitcode < 0 else "error"
                    content = f"worker {index} {_cause(process.exitcode)}"
                if kind == "news":
                    if news is not None:
                        news(content)
                elif kind == "result":
                    errors = kills = 0
                    missing -= 1
                    yield busy.pop(index), content
                elif kind == "refused":
                    raise Refused(content)
                else:
                    waiting.appendleft(busy.pop(index))
                    errors += kind == "error"
                    kills += kind == "kill"
                    log = self._log_dir / f"worker_{index}.log"
                    if errors >= MAX_ERRORS or kills >= MAX_KILLS:
                        raise WorkerError(
                            f"{errors + kills} workers failed in a row without finishing anything; "
                            f"the last error (more in {log}):\n{content}"
                        )
                    if not self._reported:  # the first error in full, the others in a line
                        self._reported = True
                        print(content.strip(), file=sys.stderr)
                    print(
                        f"worker {index} failed, its work is done again by a fresh one "
                        f"({content.strip().splitlines()[-1]}; see {log})",
                        file=sys.stderr,
                    )
                    process.kill()
                    process.join()
                    connection.close()
                    self._workers[index] = self._start(index)

    def close(self) -> None:
        """End all workers at once, whatever they are doing."""
        for process, connection in self._workers:
            process.kill()
            connection.close()
        for process, _ in self._workers:
            process.join()

    def __len__(self) -> int:
        return len(self._workers)

    def __enter__(self) -> "WorkerPool":
        return self

    def __exit__(self, *_) -> None:
        self.close()


def _cause(exitcode: int) -> str:
    if exitcode < 0:
        return f"was killed by {signal.Signals(-exitcode).name}"
    return f"ended with exit code {exitcode}"


def _work_until_closed(
    index: int, setup: Callable[..., Work], arguments: tuple, connection: Connection, log_dir: Path
) -> None:
    """The life of a worker process."""
    log = os.open(log_dir / f"worker_{index}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    try:
        work = setup(index, *arguments)
        while True:
            try:
                unit = connection.recv()
            except EOFError:
                return  # the parent has closed the pipe: there is no more work
            result = work(unit, lambda content: connection.send(("news", content)))
            connection.send(("result", result))
    except Refused as error:
        print(f"refused: {error}", flush=True)
        connection.send(("refused", str(error)))
    except BaseException:
        traceback.print_exc()
        connection.send(("error", traceback.format_exc()))


def _die_with_parent() -> None:
    """End this process as soon as its parent is gone, even in the middle of a unit."""
    wait([mp.parent_process().sentinel])
    os._exit(1)


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
