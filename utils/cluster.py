"""Workers on a Ray cluster, with the interface of `utils.workers.WorkerPool`."""

import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError

from utils.workers import MAX_ERRORS, MAX_KILLS, Refused, Work, WorkerError

ROOT = Path(__file__).resolve().parent.parent
CODE = ("data", "envs", "models", "utils")  # what Ray brings to the nodes

# Seconds without any worker: after the first a line says so, after the second a run ends.
TELL_AFTER, NO_NODE_AFTER = 30, 600
# Seconds after which a unit is done again by another worker. There are no signs of life here.
STUCK_UNIT = 3600

Task = tuple[int, int]  # run, unit


class _Actor:
    """What Ray starts on a core, or on a share of a GPU."""

    def __init__(self, index: int, setup: Callable[..., Work], arguments: tuple):
        self.start = lambda: setup(index, *arguments)

    def ready(self) -> None:
        """Set up; not at the actor's own start, whose errors arrive without their kind."""
        self.work = self.start()

    def do(self, unit: Any, shared: Any) -> tuple[Any, list[Any]]:
        """The unit's result, and what was reported on the way."""
        reported: list[Any] = []
        if shared is not None:
            unit = unit.complete(shared)
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
            "cluster (`ray start --head`), and is RAY_AUTH_MODE set the same on all machines?"
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
        self._setup, self._arguments = setup, self._put(arguments)
        self._no_node_after = no_node_after
        self._starting: dict[ray.ObjectRef, Any] = {}  # answer of `ready` -> actor
        self._idle: list[Any] = []
        # Answer of `do` -> actor, task, when it was given.
        self._busy: dict[ray.ObjectRef, tuple[Any, Task, float]] = {}
        self._started = self._runs = 0
        self._reported = False
        self._recruit()

    @staticmethod
    def _put(what: Any) -> ray.ObjectRef:
        """Into the object store, from which each node fetches it once."""
        try:
            return ray.put(what)
        except RayError as error:
            raise Refused(
                f"Ray's object store cannot take it: {str(error).splitlines()[0]}"
            ) from None

    def __len__(self) -> int:
        """The workers that there are or that are about to be; one at least, for which it waits."""
        self._recruit()
        return max(1, len(self._starting) + len(self._idle) + len(self._busy))

    def _recruit(self) -> None:
        """Start an actor for each core, or share of a GPU, that has none."""
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        needs = {"num_cpus": 1}
        want = sum(int(node.get("CPU", 0)) for node in nodes)
        if self._gpus:  # on each node an equal share for each of its cores
            shares = [node["GPU"] / max(1, node.get("CPU", 0)) for node in nodes if node.get("GPU")]
            share = min([1.0, *shares])
            needs["num_gpus"] = int(10_000 * share) / 10_000  # Ray knows no finer ones
            want = sum(int(node.get("GPU", 0) / share) for node in nodes)
        if self._most is not None:
            want = min(self._most, want)
        there = len(self._starting) + len(self._idle) + len(self._busy)
        for _ in range(want - there):
            actor = ray.remote(**needs)(_Actor).remote(self._started, self._setup, self._arguments)
            self._starting[actor.ready.remote()] = actor
            self._started += 1

    def run(
        self,
        units: Sequence[Any],
        receive: Callable[[Any], None] | None = None,
        shared: Any = None,
    ) -> Iterator[tuple[int, Any]]:
        """Share `units` out and yield (index of the unit, result) as they are finished.

        What is `shared` travels once to each node; what a worker reports arrives with the result.
        Raises WorkerError after MAX_ERRORS errors or MAX_KILLS lost workers without a result, and
        Refused when a worker does, or where there is none for a long time.
        """
        self._runs += 1
        run, waiting, missing = self._runs, deque(range(len(units))), len(units)
        errors = kills = 0
        there = None if shared is None else self._put(shared)
        self._recruit()
        while missing:
            while self._idle and waiting:
                actor, task = self._idle.pop(), (run, waiting.popleft())
                answer = actor.do.remote(units[task[1]], there)
                self._busy[answer] = actor, task, time.monotonic()
            for actor, task, said in self._answers():
                ours = task is not None and task[0] == run  # and not of a run that was left early
                if isinstance(said, RayError):
                    lost = isinstance(said, RayActorError | GetTimeoutError)
                    errors, kills = errors + (not lost), kills + lost
                    self._replace(actor, said, errors, kills)
                    if ours:
                        waiting.appendleft(task[1])
                elif ours:
                    result, reported = said
                    for content in reported if receive is not None else []:
                        receive(content)
                    errors = kills = 0
                    missing -= 1
                    yield task[1], result

    def _answers(self) -> Iterator[tuple[Any, Task | None, Any]]:
        """Who says what next: (actor, its task, result or error); waits for something."""
        if not (self._busy or self._idle):
            self._wait_for_a_worker()
        for answer in ray.wait([*self._busy, *self._starting], timeout=1)[0]:
            actor, task, _ = self._busy.pop(answer, (None, None, None))
            actor = actor or self._starting.pop(answer)
            try:
                said = ray.get(answer)
            except RayError as error:
                said = error
            else:
                self._idle.append(actor)
            yield actor, task, said
        stuck = time.monotonic() - STUCK_UNIT
        for answer, (actor, task, since) in list(self._busy.items()):
            if since < stuck:
                del self._busy[answer]
                yield actor, task, GetTimeoutError(f"no result for {STUCK_UNIT} s")

    def _wait_for_a_worker(self) -> None:
        """Wait until one has started, or failed to; says so, and raises after a long time."""
        since, reported = time.monotonic(), False
        while not (self._starting and ray.wait(list(self._starting), timeout=1)[0]):
            alone = time.monotonic() - since
            if alone > self._no_node_after:
                raise Refused(f"no node of the Ray cluster had room for a worker for {alone:.0f} s")
            if alone > TELL_AFTER and not reported:
                reported = True
                print("no node of the Ray cluster has room for a worker; waiting", flush=True)
            if not self._starting:
                time.sleep(1)
            self._recruit()

    def _replace(self, actor: Any, error: RayError, errors: int, kills: int) -> None:
        """Start others for an actor that failed; says so, or raises."""
        if isinstance(error, RayTaskError) and isinstance(error.cause, Refused):
            raise Refused(str(error.cause))
        with open(self._log, "a") as log:
            print(error, file=log)
        if errors >= MAX_ERRORS or kills >= MAX_KILLS:
            raise WorkerError(
                f"{errors + kills} workers failed in a row without finishing anything; "
                f"the last error (more in {self._log}):\n{error}"
            )
        lost = not isinstance(error, RayTaskError)
        if not lost and not self._reported:  # the first error in full, the others in a line
            self._reported = True
            print(str(error).strip(), file=sys.stderr)
        what = "was lost, perhaps with its node" if lost else "failed"
        print(f"a worker {what}; its work is done again (see {self._log})", file=sys.stderr)
        ray.kill(actor)
        self._recruit()

    def close(self) -> None:
        """End all workers at once, whatever they are doing."""
        busy = [actor for actor, *_ in self._busy.values()]
        for actor in [*self._starting.values(), *self._idle, *busy]:
            ray.kill(actor)

    def __enter__(self) -> "RayPool":
        return self

    def __exit__(self, *_) -> None:
        self.close()
