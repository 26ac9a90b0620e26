"""Rollouts of controllers shared out over workers: processes, or those of a Ray cluster."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from envs.rollouts import play
from envs.simulated_carracing import Dream, Dreaming, load_world
from envs.simulator import Simulator, environment
from models.agent import AgentPolicy
from models.logdir import DEFAULT, Driving, load_agent
from models.parcel import pack, unpack
from utils.cli import OTHER_DEVICE, UserError, first_line, gpu_fails, gpu_is_full
from utils.cores import available_cores
from utils.devices import choose_device, fast_precision
from utils.workers import WorkerPool

if TYPE_CHECKING:
    from utils.cluster import RayPool

# Rollouts in a unit of work, which a worker drives in lockstep. Large enough for batches that are
# fast, small enough that a large population keeps all cores busy to its end. It is the most there
# are; `run_rollouts` makes all units alike.
UNIT = 64
DREAM_UNIT = 512


class Rollouts(NamedTuple):
    """A unit of work: rollout i drives candidate `rows[i]` on the track of `seeds[i]`."""

    number: int  # of the unit
    rows: list[int]
    seeds: list[int]
    patience: int  # see envs.rollouts.play
    dream: Dreaming | None  # where these are the seeds of dreams
    parameters: np.ndarray | None = None  # (n, P) float32, of the rollouts

    def complete(self, candidates: np.ndarray) -> "Rollouts":
        """With the parameters out of those of all candidates, (m, P)."""
        return self._replace(parameters=candidates[self.rows])


@contextmanager
def plain_errors(device: torch.device, no_memory: str) -> Iterator[None]:
    """Raise UserError for what a GPU says, with `no_memory` where it is full."""
    try:
        yield
    except RuntimeError as error:
        if gpu_is_full(error):
            raise UserError(no_memory) from error
        if gpu_fails(error):
            raise UserError(f"{device}: {first_line(error)}; {OTHER_DEVICE}") from error
        raise


def setup_worker(
    index: int,
    logdir: Path,
    device: str,
    driving: Driving,
    models: str,
    threads: int,
) -> Callable:
    """What a worker does with Rollouts: (returns (n,), lengths (n,)).

    It reports (number of the unit, rollouts that are finished), and lines for the terminal.
    `models` is the fingerprint of the V and M that all workers drive with.
    """
    torch.set_num_threads(threads)
    if device == "cuda":
        device = f"cuda:{index % torch.cuda.device_count()}"
    chosen = choose_device(device)
    no_memory = (
        f"{chosen} has not enough memory for worker {index}, after those before it; "
        "use a smaller --max-workers, or more GPUs in CUDA_VISIBLE_DEVICES"
    )
    with plain_errors(chosen, no_memory):
        agent = load_agent(logdir, chosen, fast_precision(chosen), driving, models)
    print(f"worker {index}: {chosen}, {threads} threads", flush=True)
    stepped, reported = False, False
    world = functools.cache(lambda: load_world(logdir))

    def work(unit: Rollouts, report: Callable) -> tuple[np.ndarray, np.ndarray]:
        nonlocal reported
        n = going = len(unit.seeds)

        def watch(ids: np.ndarray, *_) -> None:
            nonlocal stepped, going
            report()
            if not stepped:
                print(f"worker {index}: first step", flush=True)
                stepped = True
            if len(ids) < going:
                going = len(ids)
                report((unit.number, n - going))

        if unit.dream is None:
            environments = Simulator(unit.seeds)
        else:
            environments = Dream(world(), unit.seeds, unit.dream)
        try:
            with plain_errors(chosen, no_memory):
                policy = AgentPolicy(agent, torch.from_numpy(unit.parameters))
                results = play(environments, n, n, policy, watch, unit.patience)
        finally:
            environments.close()
        if chosen.type == "cuda" and not reported:
            held = torch.cuda.max_memory_reserved(chosen) / 2**20
            report(f"worker {index} holds {held:.0f} MiB of {chosen}, beside CUDA's own context")
            reported = True
        return results

    return work


def setup_elsewhere(index: int, packed: bytes, *arguments) -> Callable:
    """`setup_worker` on a machine that has only what `models.parcel.pack` brought."""
    environment()
    return setup_worker(index, unpack(packed), *arguments)


def start_workers(
    logdir: Path,
    device: torch.device,
    max_workers: int | None,
    rollouts: int,
    models: str,
    driving: Driving = DEFAULT,
    ray_address: str | None = None,
    dreams: bool = False,
) -> "WorkerPool | RayPool":
    """Workers for batches of `rollouts`, never more than there is work.

    What they draw with is compiled here, where that was not done before, and not by each of them.
    `models` is the fingerprint of V and M, by `agent_digest`, as they have to stay. With
    `ray_address` they are those of that cluster, and `dreams` says that they have to dream.
    """
    name = "cuda" if device.type == "cuda" and device.index is None else str(device)
    if ray_address is not None:
        RayPool = cluster_pool(ray_address)
        most = rollouts if max_workers is None else min(max_workers, rollouts)
        arguments = (pack(logdir, dreams), name, driving, models, 1)
        return RayPool(most, setup_elsewhere, arguments, logdir / "tmp", device.type == "cuda")
    environment()
    count = min(max_workers or available_cores(), rollouts)
    arguments = (logdir, name, driving, models, max(1, available_cores() // count))
    return WorkerPool(count, setup_worker, arguments, logdir / "tmp")


def cluster_pool(ray_address: str) -> type:
    """`utils.cluster.RayPool`, once this process has joined the cluster.

    Raises UserError without Ray, and Refused without a cluster.
    """
    try:
        from utils import cluster
    except ImportError as error:
        raise UserError(
            f"--ray-address needs Ray ({error}): pip install -r requirements-cluster.txt"
        ) from None
    cluster.connect(ray_address)
    return cluster.RayPool


def run_rollouts(
    pool: WorkerPool,
    parameters: np.ndarray,
    seeds: list[int],
    progress: Callable[[int], None] | None = None,
    patience: int = 0,
    dream: Dreaming | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Drive each of m controllers (m, P) on each of k tracks, or in k dreams.

    Returns the returns (m, k) float64 and the lengths in frames (m, k) int64.
    `progress(rollouts)` is called as rollouts are finished.
    """
    m, k = len(parameters), len(seeds)
    pairs = [(i, j) for i in range(m) for j in range(k)]
    # As many units for each worker, and alike: of one size to within one rollout, and shuffled,
    # because the rollouts of a candidate are of like length, and those of a track too. 96 rollouts
    # on 2 workers are 2 units of 48, 160 are 4 of 40.
    most = len(pool) * (UNIT if dream is None else DREAM_UNIT)
    count = min(len(pairs), len(pool) * -(-len(pairs) // most))
    order = np.random.default_rng(0).permutation(len(pairs))
    shares = [[pairs[i] for i in order[first::count]] for first in range(count)]
    units = [
        Rollouts(
            number,
            [i for i, _ in share],
            [seeds[j] for _, j in share],
            patience,
            dream,
        )
        for number, share in enumerate(shares)
    ]
    finished = [0] * count

    def advance(number: int, rollouts: int) -> None:
        # A unit that is done again, because its worker died, counts once.
        if progress is not None and rollouts > finished[number]:
            progress(rollouts - finished[number])
            finished[number] = rollouts

    def receive(content: str | tuple[int, int]) -> None:
        if isinstance(content, str):
            print(content)
        else:
            advance(*content)

    returns, lengths = np.empty((m, k)), np.empty((m, k), np.int64)
    for number, (unit_returns, unit_lengths) in pool.run(
        units, receive, parameters.astype(np.float32)
    ):
        rows, columns = zip(*shares[number], strict=True)
        returns[rows, columns], lengths[rows, columns] = unit_returns, unit_lengths
        advance(number, len(shares[number]))
    return returns, lengths
