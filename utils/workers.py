"""Worker processes that take units of work, die, and are replaced.

The pool knows nothing of what a unit is. A unit's result must depend on the unit alone,
so that doing it again on a fresh worker gives what the lost one would have given.
"""

import multiprocessing as mp
import os
import signal
import sys
import threading
import time
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

# Seconds without a sign of life after which a worker is taken for stuck: stopped, or hanging in a
# driver. A step of 64 cars, after which one is given, takes a second where Gymnasium draws them.
STUCK_AFTER = 600
SIGN_EVERY = 5  # seconds from one that is sent to the next, at least


class WorkerError(Exception):
    """The workers failed again and again; the message holds the last one's own traceback."""


class Refused(Exception):
    """Raised in a worker: what it was asked to do cannot be done, and trying again is no use.

    The pool raises it in the parent.
    """


# setup(worker's index, *arguments) -> work(unit, report) -> result
Work = Callable[[Any, Callable[..., None]], Any]


class _Worker:
    """A process, the pipe to it, and what it is busy with."""

    def __init__(self, process: mp.Process, connection: Connection):
        self.process, self.connection = process, connection
        self.task: tuple[int, int] | None = None  # (run, unit)
        self.sender: threading.Thread | None = None
        self.silent = 0.0  # seconds since its last message, while it was busy

    def take(self, task: tuple[int, int], unit: Any) -> None:
        """Give it a unit. In a thread: a worker that is stopped leaves what it is sent unread."""

        def send() -> None:
            with suppress(OSError):  # of a worker that is dead: its silence tells
                self.connection.send((task, unit))

        self.task, self.silent = task, 0.0
        self.sender = threading.Thread(target=send, daemon=True)
        self.sender.start()

    def end(self) -> None:
        """Kill the process, which may be stopped, and wait for its end."""
        self.process.kill()
        self.process.join()
        if self.sender is not None:
            self.sender.join()
        self.connection.close()


class WorkerPool:
    """`count` processes, each of which calls `setup(index, *arguments)` once and then works.

    `setup` is a function of a module (it travels by name). It returns `work(unit, report)`,
    which returns the unit's result and may call `report(content)` on the way. It calls `report()`,
    as a sign of life, more often than every `stuck_after` seconds, else it is killed and its unit
    done again by another worker. What a worker prints goes to `log_dir/worker_<index>.log`.
    A context manager: at its end all workers are gone.
    """

    def __init__(
        self,
        count: int,
        setup: Callable[..., Work],
        arguments: tuple,
        log_dir: Path,
        stuck_after: float = STUCK_AFTER,
    ):
        log_dir.mkdir(parents=True, exist_ok=True)
        self._stuck_after = stuck_after
        self._runs = 0
        self._context = mp.get_context("spawn")  # fork would copy torch's and CUDA's state
        self._setup, self._arguments, self._log_dir = setup, arguments, log_dir
        self._reported = False
        self._workers = [self._start(index) for index in range(count)]

    def _start(self, index: int) -> _Worker:
        with open(self._log_dir / f"worker_{index}.log", "ab"):
            pass  # what is wrong with it is said here, and not in a worker without a log
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
        return _Worker(process, ours)

    def run(
        self,
        units: Sequence[Any],
        receive: Callable[[Any], None] | None = None,
        shared: Any = None,
    ) -> Iterator[tuple[int, Any]]:
        """Share `units` out and yield (index of the unit, result) as they are finished.

        What is `shared` by all of them completes a unit, `unit.complete(shared)`, before a worker
        takes it.

        Units are given out in their order, one a worker at a time: put the longest first.
        A worker that dies or raises is replaced and its unit is done again, with one line on
        the terminal. Raises WorkerError after MAX_ERRORS errors or MAX_KILLS kills without a
        result, and Refused when a worker does.
        """
        self._runs += 1
        run = self._runs
        waiting = deque(range(len(units)))
        errors = kills = 0
        missing = len(units)
        while missing:
            for worker in self._workers:
                if worker.task is None and waiting:
                    unit = waiting.popleft()
                    whole = units[unit] if shared is None else units[unit].complete(shared)
                    worker.take((run, unit), whole)
            for index, kind, task, content in self._messages():
                if kind in ("error", "kill"):
                    errors += kind == "error"
                    kills += kind == "kill"
                    self._replace(index, content, errors, kills)
                    if task[0] == run:
                        waiting.appendleft(task[1])
                elif kind == "refused":
                    raise Refused(content)
                elif task[0] != run:  # of a run that was left early
                    continue
                elif kind == "message":
                    if receive is not None:
                        receive(content)
                else:
                    errors = kills = 0
                    missing -= 1
                    yield task[1], content

    def _messages(self) -> Iterator[tuple[int, str, tuple[int, int], Any]]:
        """What busy workers say next: (worker, kind, task, content); waits for something.

        A dead worker says "kill" or "error", and one that is stuck "kill": both are to be replaced.
        """
        busy = {worker.connection: i for i, worker in enumerate(self._workers) if worker.task}
        start = time.monotonic()
        ready = wait(list(busy), timeout=min(1.0, self._stuck_after / 4))
        # Not by the clock alone, which runs on while this process itself is stopped.
        waited = min(time.monotonic() - start, 2.0)
        for connection, index in busy.items():
            worker = self._workers[index]
            worker.silent += waited
            if connection in ready:
                worker.silent = 0.0
                try:
                    kind, task, content = connection.recv()
                except (EOFError, OSError):
                    worker.process.join()
                    code = worker.process.exitcode
                    kind, task = "kill" if code < 0 else "error", worker.task
                    content = f"worker {index} {_cause(code)}"
                if kind == "result":
                    worker.task = None
                if kind != "life":
                    yield index, kind, task or worker.task, content
            elif worker.silent > self._stuck_after:
                content = f"worker {index} gave no sign of life for {self._stuck_after:.0f} s"
                yield index, "kill", worker.task, content

    def _replace(self, index: int, content: str, errors: int, kills: int) -> None:
        """Put a fresh worker in the place of one that failed; says so, or raises WorkerError."""
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
        self._workers[index].end()
        self._workers[index] = self._start(index)

    def close(self) -> None:
        """End all workers at once, whatever they are doing."""
        for worker in self._workers:
            worker.process.kill()
        for worker in self._workers:
            worker.end()

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
        task, last_sign = None, 0.0

        def report(content: Any = None) -> None:
            """Send a message, or without any content a sign of life."""
            nonlocal last_sign
            if content is not None:
                connection.send(("message", task, content))
            elif time.monotonic() - last_sign > SIGN_EVERY:
                connection.send(("life", task, None))
                last_sign = time.monotonic()

        work = setup(index, *arguments)
        while True:
            try:
                task, unit = connection.recv()
            except EOFError:
                return  # the parent has closed the pipe: there is no more work
            connection.send(("result", task, work(unit, report)))
    except Refused as error:
        print(f"refused: {error}", flush=True)
        connection.send(("refused", None, str(error)))
    except BaseException:
        traceback.print_exc()
        connection.send(("error", None, traceback.format_exc()))


def _die_with_parent() -> None:
    """End this process as soon as its parent is gone, even in the middle of a unit."""
    wait([mp.parent_process().sentinel])
    os._exit(1)
