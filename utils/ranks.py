"""The processes that `torchrun` started to train one model together; usually there is one.

Each rank has a share of the episodes and of each batch. The first one alone reads checkpoints,
writes and prints.
"""

import os
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from utils import files
from utils.cli import UserError
from utils.cores import available_cores

T = TypeVar("T")


def count() -> int:
    """How many ranks there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


@contextmanager
def joined(args: Namespace) -> Iterator[None]:
    """Work with the other ranks in this block, where torchrun started any.

    Each process of a machine takes its own GPU: `args.device` is set to it. NCCL carries what GPUs
    compute, Gloo what CPUs do.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    on_gpus = args.device == "cuda" or (args.device == "auto" and torch.cuda.is_available())
    if on_gpus:
        args.device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(args.device)
    elif args.device not in ("cpu", "auto"):
        raise UserError(f"--device {args.device}: under torchrun each process takes its own GPU")
    # torchrun allows one thread for each process, whatever cores there are.
    torch.set_num_threads(max(1, available_cores() // int(os.environ["LOCAL_WORLD_SIZE"])))
    # One rank may wait for hours while another encodes its episodes.
    dist.init_process_group("nccl" if on_gpus else "gloo", timeout=timedelta(days=1))
    try:
        if rank():
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115, for the rest of this process
        yield
    except Exception:
        if rank():
            time.sleep(3)  # torchrun ends it, if the first rank says the same
        raise
    finally:
        dist.destroy_process_group()


def exclusive(folder: Path, what: str) -> AbstractContextManager:
    """`utils.files.exclusive`, for all ranks together."""
    return nullcontext() if rank() else files.exclusive(folder, what)


def share(items: list[T]) -> list[T]:
    """This rank's part of them; none, where there are fewer than ranks."""
    return items[rank() :: count()]


def require_same(what: str, here: str) -> None:
    """Raise UserError where `here`, which describes `what`, is not the same on all ranks."""
    if len(set(gathered([here]))) > 1:
        raise UserError(f"{what} are not the same on all machines; copy them anew")


def share_of_batch(size: int, episodes: int) -> int:
    """This rank's part of a batch of `size`.

    Raises UserError where there are fewer than ranks, or fewer `episodes` to train on.
    """
    if size < count():
        raise UserError(f"--batch-size {size}: fewer than the {count()} processes that share it")
    if episodes < count():
        raise UserError(f"{count()} processes for {episodes} episodes; start fewer of them")
    return size // count() + (rank() < size % count())


def wrapped(model: nn.Module) -> nn.Module:
    """The model; with several ranks as one whose gradients are the means over them."""
    return model if count() == 1 else DistributedDataParallel(model)


def weighted(
    batches: Iterator[Tensor], device: torch.device, together: bool
) -> Iterator[tuple[Tensor, Tensor, int]]:
    """Batches of the `data.loaders`, the factors of their mean losses, scalars, and their sizes.

    With `together` there are as many on each rank, and the mean of the ranks' gradients is the
    gradient of the mean over all their batches together: a rank that has none left repeats its last
    one, with factor and size 0. Otherwise, and on a single rank, all factors are 1.
    """
    one = torch.ones((), device=device)
    if count() == 1 or not together:
        for batch in batches:
            yield batch, one, batch_size(batch)
        return
    last = None
    while True:
        batch = next(batches, None)
        size = 0 if batch is None else batch_size(batch)
        of_all = total(torch.tensor(float(size), device=device)).item()
        if of_all == 0:
            return
        last = last if batch is None else batch
        if last is None:
            raise UserError("a process has no data that can be read; start fewer of them")
        yield last, one * (size * count() / of_all), size


def batch_size(batch: Tensor) -> int:
    """Of frames (B, 64, 64, 3), or of the rows of windows (T, B)."""
    return batch.shape[1] if batch.ndim == 2 else batch.shape[0]


def total(values: Tensor) -> Tensor:
    """The sum over all ranks."""
    if count() > 1:
        dist.all_reduce(values)
    return values


def means(totals: Tensor, seen: int) -> list[float]:
    """Sums (n,) over what this rank has seen -> the means over all ranks."""
    summed = total(torch.cat([totals, totals.new_tensor([seen])]))
    return (summed[:-1] / summed[-1]).tolist()


def from_first(make: Callable[[], T]) -> T:
    """What `make` returns on the first rank, on all of them."""
    if count() == 1:
        return make()
    made = [None if rank() else make()]
    dist.broadcast_object_list(made)
    return made[0]


def gathered(items: list[T]) -> list[T]:
    """The items of all ranks."""
    if count() == 1:
        return items
    parts: list[list[T]] = [[] for _ in range(count())]
    dist.all_gather_object(parts, items)
    return [item for part in parts for item in part]
