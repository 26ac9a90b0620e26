"""Workers on a Ray cluster, with the interface of `utils.workers.WorkerPool`."""

import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from utils.workers import MAX_ERRORS, Refused, Work, WorkerError

ROOT = Path(__file__).resolve().parent.parent
CODE = ("data", "envs", "models", "utils")  # what Ray brings to the nodes

NO_NODE_AFTER = 600  # seconds without any worker after which a run ends

Task = tuple[int, int]  # run, unit


class _Actor:
    """What Ray starts on a core, or on a share of a GPU."""

    def __init__(self, index: int, setup: Callable[..., Work], arguments: tuple):
        self.start = lambda: setup(index, *arguments)

    def ready(self) -> None:
        """Set up; not at the actor's own start, whose errors arrive without their kind."""
        self.work = self.start()

    def do(self, unit: Any) -> tuple[Any, list[Any]]:
        """The unit's result, and what was reported on the way."""
        reported: list[Any] = []
        return self.work(unit, lambda *content: reported.extend(content)), reported


def connect(address: str) -> None:
    """Join the cluster at `address`; `local` starts one. Raises Refused where there is none."""
    if ray.is_initialized():
        return
    host, colon, port = address.rpartition(":")
    code = {"py_modules": [str(ROOT / name) for name in CODE], "excludes": ["__pycache__"]}
    try:
        if colon and port.isdecimal() and "://" not in address:
            socket.create_connection((host, int(port)), 10).close()  # Ray itself tries for minutes
        ray.init(address, runtime_env=code, log_to_driver=False, logging_level="ERROR")
    except (OSError, OverflowError, ValueError, RuntimeError, RayError) as error:
        raise Refused(
            f"--ray-address {address}: {str(error).strip().splitlines()[0]}; is there a "
            "cluster (`ray start --head`), and RAY_AUTH_MODE here as there?"
        ) from None


class RayPool:
    """An actor for each core of the cluster, or for each one's share of the GPUs; `most` at most.

    `setup`, `arguments`, `run` and what a unit's result may depend on are as in `WorkerPool`. The
    arguments travel once to each node. An actor that is lost costs the unit that it had in hand;
    nodes that join get their actors when the next `run` begins, or when there is no other one.
    """

    def __init__(
        self,
        most: int | None,
        setup: Callable[..., Work],
        arguments: tuple,
        log_dir: Path,
        gpus: bool = False,
        no_node_after: float = NO_NODE_AFTER,
    ):
        log_dir.mkdir(parents=True, exist_ok=True)
        self._most, self._gpus, self._log = most, gpus, log_dir / "ray.log"
        self._setup, self._arguments = setup, ray.put(arguments)
        self._no_node_after = no_node_after
        self._starting: dict[ray.ObjectRef, Any] = {}  # answer of `ready` -> actor
        self._idle: list[Any] = []
        self._busy: dict[ray.ObjectRef, tuple[Any, Task]] = {}  # answer of `do` -> actor, task
        self._started = self._runs = 0
        self._reported = False
        self._recruit()

    def __len__(self) -> int:
        """The workers that there are or that are about to be; one at least, for which it waits."""
        return max(1, len(self._starting) + len(self._idle) + len(self._busy))

    def _recruit(self) -> None:
        """Start an actor for each core, or share of a GPU, that has none."""
        there = ray.cluster_resources()
        want, gpus = int(there.get("CPU", 0)), there.get("GPU", 0)
        if self._most is not None:
            want = min(self._most, want)
        needs = {"num_cpus": 1}
        if self._gpus:
            want = want if gpus else 0
            share = min(1, gpus / max(1, want))
            needs["num_gpus"] = int(10_000 * share) / 10_000  # Ray knows no finer ones
        there = len(self._starting) + len(self._idle) + len(self._busy)
        for _ in range(want - there):
            actor = ray.remote(**needs)(_Actor).remote(self._started, self._setup, self._arguments)
            self._starting[actor.ready.remote()] = actor
            self._started += 1

    def run(
        self, units: Sequence[Any], receive: Callable[[Any], None] | None = None
    ) -> Iterator[tuple[int, Any]]:
        """Share `units` out and yield (index of the unit, result) as they are finished.

        What a worker reports arrives with the result. Raises WorkerError after MAX_ERRORS errors
        without a result, and Refused when a worker does, or where there is none for a long time.
        """
        self._runs += 1
        run, waiting, missing, errors = self._runs, deque(range(len(units))), len(units), 0
        self._recruit()
        while missing:
            while self._idle and waiting:
                actor, task = self._idle.pop(), (run, waiting.popleft())
                self._busy[actor.do.remote(units[task[1]])] = actor, task
            for actor, task, said in self._answers():
                ours = task is not None and task[0] == run  # and not of a run that was left early
                if isinstance(said, RayError):
                    errors += isinstance(said, RayTaskError)
                    self._replace(actor, said, errors)
                    if ours:
                        waiting.appendleft(task[1])
                elif ours:
                    result, reported = said
                    for content in reported if receive is not None else []:
                        receive(content)
                    errors, missing = 0, missing - 1
                    yield task[1], result

    def _answers(self) -> Iterator[tuple[Any, Task | None, Any]]:
        """Who says what next: (actor, its task, result or error); waits for something."""
        alone_since, told = time.monotonic(), False
        while not (self._busy or self._idle):  # all are still to start, or there are none
            if self._starting and ray.wait(list(self._starting), timeout=1)[0]:
                break
            alone = time.monotonic() - alone_since
            if alone > self._no_node_after:
                raise Refused(f"no node of the Ray cluster had room for a worker for {alone:.0f} s")
            if alone > 5 and not told and not ray.cluster_resources().get("CPU"):
                told = True
                print("no node of the Ray cluster has room for a worker; waiting", flush=True)
            self._recruit()
            time.sleep(0 if self._starting else 1)
        waited_for = [*self._busy, *self._starting]
        for answer in ray.wait(waited_for, num_returns=1, timeout=1)[0]:
            actor, task = self._busy.pop(answer, (None, None))
            actor = actor or self._starting.pop(answer)
            try:
                said = ray.get(answer)
            except RayError as error:
                said = error
            else:
                self._idle.append(actor)
            yield actor, task, said

    def _replace(self, actor: Any, error: RayError, errors: int) -> None:
        """Start others for an actor that failed; says so, or raises."""
        if isinstance(error, RayTaskError) and isinstance(error.cause, Refused):
            raise Refused(str(error.cause))
        with open(self._log, "a") as log:
            print(error, file=log)
        if errors >= MAX_ERRORS:
            raise WorkerError(
                f"{errors} workers failed in a row without finishing anything; "
                f"the last error (more in {self._log}):\n{error}"
            )
        lost = isinstance(error, RayActorError)
        if not lost and not self._reported:  # the first error in full, the others in a line
            self._reported = True
            print(str(error).strip(), file=sys.stderr)
        what = "was lost with its node" if lost else "failed"
        print(f"a worker {what}, its work is done again (see {self._log})", file=sys.stderr)
        ray.kill(actor)
        self._recruit()

    def close(self) -> None:
        """End all workers at once, whatever they are doing."""
        busy = [actor for actor, _ in self._busy.values()]
        for actor in [*self._starting.values(), *self._idle, *busy]:
            ray.kill(actor)

    def __enter__(self) -> "RayPool":
        return self

    def __exit__(self, *_) -> None:
        self.close()
