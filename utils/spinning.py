"""Let torch's threads wait asleep while something else takes a core.

GCC's OpenMP, with which torch computes on Linux, lets a thread that is done with its part of a loop
spin until the others are. That is fast on an idle machine. Where another process takes a core, the
thread that should run spins for the one that cannot, and a training with its thousands of short
loops falls to a fifth. OpenMP stops to spin while it has more threads than there are cores. So
some more are made, which sleep, for as long as the cores are shared. The number of threads that
compute stays the same, and with it each result, to the last bit.
"""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from tqdm import tqdm

INTERVAL = 1.0  # seconds
# Shares of the time for which a thread had to wait for a core: 0.01 on an idle machine, 0.3 to 0.4
# on one of two cores beside a busy process.
SHARED, IDLE = 0.15, 0.05

TASKS = Path("/proc/self/task")


class SleepingThreads:
    """OpenMP's threads that do nothing but be there: more than cores, with those that compute."""

    def __init__(self):
        self._end = threading.Event()
        self._threads = [threading.Thread(target=self._hold, daemon=True) for _ in range(teams())]
        for thread in self._threads:
            thread.start()

    def _hold(self) -> None:
        torch.ones(2**20).add_(1)  # large enough to be shared among a team
        self._end.wait()

    def end(self) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join()


def teams() -> int:
    """How many there have to be: each thread that calls OpenMP gets a team of its own."""
    return len(os.sched_getaffinity(0)) // max(1, torch.get_num_threads() - 1) + 1


def room_for(threads: int) -> bool:
    """Whether so many threads can be made, by trying: OpenMP ends the process where it cannot."""
    end, started = threading.Event(), []
    try:
        for _ in range(threads):
            started.append(threading.Thread(target=end.wait, daemon=True))
            started[-1].start()
    except RuntimeError:
        started.pop()
        return False
    finally:
        end.set()
        for thread in started:
            thread.join()
    return True


class Watch:
    """Has SleepingThreads while cores are shared."""

    def __init__(self):
        self.sleeping: SleepingThreads | None = None
        self._reported = self._no_room = False
        self._before, self._at = waited(), time.monotonic()

    def look(self) -> None:
        """Decide by the time since the last look."""
        now, at = waited(), time.monotonic()
        longest = max((now[name] - self._before.get(name, 0.0) for name in now), default=0.0)
        self.decide(longest / max(at - self._at, 1e-9))
        self._before, self._at = now, at

    def decide(self, share: float) -> None:
        """`share` of the time for which the thread that waited longest had to wait for a core."""
        if self.sleeping is None and share > SHARED and not self._no_room:
            if not room_for(2 * teams() * torch.get_num_threads()):
                self._no_room = True
                tqdm.write("cores are shared with other processes; no room for more threads")
                return
            if not self._reported:
                self._reported = True
                tqdm.write("cores are shared with other processes: torch's threads wait asleep")
            self.sleeping = SleepingThreads()
        elif self.sleeping is not None and share < IDLE:
            self.sleeping.end()
            self.sleeping = None


def waited() -> dict[str, float]:
    """Seconds for which each thread of this process was ready and had no core, by its id.

    Empty where the system does not tell: on others than Linux, which have another OpenMP.
    """
    seconds = {}
    for task in TASKS.iterdir() if TASKS.is_dir() else ():
        try:
            seconds[task.name] = int((task / "schedstat").read_text().split()[1]) / 1e9
        except OSError:  # the thread has ended, or this kernel does not count
            continue
    return seconds


@contextmanager
def share_cores() -> Iterator[None]:
    """Watch while the block runs, where torch has several threads, nearly one for each core."""
    # With a quota far below the cores there would have to be many teams.
    if torch.get_num_threads() == 1 or teams() > 4 or not waited():
        yield
        return
    watch, end = Watch(), threading.Event()

    def run() -> None:
        while not end.wait(INTERVAL):
            watch.look()
        watch.decide(0.0)

    # Waited for at the end: a thread that is in torch when Python ends aborts the process.
    thread = threading.Thread(target=run, daemon=True, name="share_cores")
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()
