"""What the trainings of V and M share: epochs, early stopping, going on where they stopped."""

import copy
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from utils import ranks
from utils.checkpoint import check_options, load_checkpoint, load_weights, save_checkpoint
from utils.cli import UserError
from utils.curves import Curves
from utils.streams import stream


def require_finite(loss: float, label: str, advice: str) -> None:
    """Raise UserError, with what to do about it, when a loss is NaN or infinite."""
    if not math.isfinite(loss):
        raise UserError(f"the loss became {loss} in {label}; the state before it is kept. {advice}")


def seed_epoch(purpose: str, seed: int, epoch: int) -> np.random.Generator:
    """Seed torch for one epoch and return a NumPy generator for its data order.

    All that is random in an epoch depends on these alone, so a training that is resumed at an
    epoch's start goes on exactly as the one that was never interrupted. Each rank has its own.
    """
    generator = stream(purpose, seed, epoch, *([ranks.rank()] if ranks.rank() else []))
    torch.manual_seed(int(generator.integers(2**63)))
    return generator


class EarlyStopping:
    """Says stop when the loss did not improve for `patience` epochs in a row."""

    def __init__(self, patience: int = 30):
        self.patience = patience
        self.best = float("inf")
        self.bad_epochs = 0

    def step(self, loss: float) -> None:
        if loss < self.best:
            self.best, self.bad_epochs = loss, 0
        else:
            self.bad_epochs += 1

    @property
    def stop(self) -> bool:
        return self.bad_epochs >= self.patience

    def state_dict(self) -> dict:
        return {"best": self.best, "bad_epochs": self.bad_epochs}

    def load_state_dict(self, state: dict) -> None:
        self.best, self.bad_epochs = state["best"], state["bad_epochs"]


class Fitting:
    """A training of V or M: epochs from the last one that is stored, and what is kept of them.

    In `folder` are `checkpoint.tar`, the latest state, and `best.tar`, that of the lowest loss on
    the held-out episodes. `options` make the training what it is: one that goes on has the same.
    `episodes` describes those "to train on" and "held out", `heads` says what M was taught.
    """

    def __init__(
        self,
        folder: Path,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        options: dict,
        episodes: dict[str, str],
        heads: str | None = None,
    ):
        self.folder, self.model, self.optimizer = folder, model, optimizer
        self.options, self.episodes, self.heads = options, episodes, heads
        self.scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer, factor=0.5, patience=5
        )
        self.stopping = EarlyStopping(patience=30)
        self.done, self.comparable = 0, True

    def run(
        self,
        epochs: int,
        train: Callable[[int], dict[str, float]],
        test: Callable[[int, str], dict[str, float]],
        show: Callable[[int, Curves], None] | None = None,
        rate: Callable[[int], float] | None = None,
    ) -> None:
        """Train up to epoch `epochs`, or until early stopping, after `resume`.

        `train(epoch)` and `test(epoch, label)` return the mean of each term of the loss, "loss"
        among them, over all ranks; `show(epoch, curves)` follows each epoch on the first one, which
        alone writes. `rate(epoch)` is the learning rate; without it, it is halved where the test
        loss does not improve.
        """
        done = self.done
        if not self.comparable:
            self.measure_best(lambda: test(done, "best")["loss"])
        curves = Curves(self.folder / "tensorboard", done + 1)
        for epoch in range(done + 1, epochs + 1):
            if self.stopping.stop:
                print(f"early stopping: no better test loss for {self.stopping.patience} epochs")
                break
            if rate is not None:
                for group in self.optimizer.param_groups:
                    group["lr"] = rate(epoch)
            trained, tested = train(epoch), test(epoch, f"epoch {epoch} test")
            if rate is None:
                self.scheduler.step(tested["loss"])
            self.stopping.step(tested["loss"])
            if ranks.rank():
                continue
            self.save(epoch, tested["loss"])
            used = self.optimizer.param_groups[0]["lr"]
            terms = ", ".join(f"{n} {value:.4g}" for n, value in tested.items() if n != "loss")
            print(
                f"epoch {epoch}: train {trained['loss']:.5g}, test {tested['loss']:.5g} ({terms}), "
                f"best {self.stopping.best:.5g}, learning rate {used:g}"
            )
            curves.add({f"{name}/train": value for name, value in trained.items()}, epoch)
            curves.add({f"{name}/test": value for name, value in tested.items()}, epoch)
            curves.add({"learning_rate": used}, epoch)
            if show is not None:
                show(epoch, curves)
        else:
            best = f"best test loss {self.stopping.best:.5g}"
            print(f"{self.folder}: {max(done, epochs)} epochs done, {best}")
        curves.close()

    def save(self, epoch: int, loss: float) -> None:
        """The end of an epoch.

        `best.tar` comes first: a process that is killed between the two does this epoch again
        and writes the same.
        """
        state = {
            "epoch": epoch,
            "state_dict": self.model.state_dict(),
            "precision": loss,  # the name that public checkpoints have for the test loss
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "earlystopping": self.stopping.state_dict(),
            "options": self.options,
            "episodes": self.episodes,
            **({} if self.heads is None else {"heads": self.heads}),
        }
        if self.stopping.bad_epochs == 0:
            save_checkpoint(self.folder / "best.tar", state)
        save_checkpoint(self.folder / "checkpoint.tar", state)

    def resume(self) -> None:
        """Load the latest state, on all ranks that of the first one: see `_load`."""
        if not ranks.rank():
            self._load()
        if ranks.count() > 1:
            parts = (self.model, self.optimizer, self.scheduler, self.stopping)
            states, self.done, self.comparable = ranks.from_first(
                lambda: ([part.state_dict() for part in parts], self.done, self.comparable)
            )
            if ranks.rank():
                for part, state in zip(parts, states, strict=True):
                    part.load_state_dict(state)

    def _load(self) -> None:
        """Load the latest state; says what was found.

        Then `done` is the number of epochs, and `comparable` tells whether the loss to beat was
        measured on the episodes that are held out now. Where there is only a
        `best.tar`, or a checkpoint of another program with the same tensor names, its weights and
        epoch are taken and the optimizer starts anew. Raises UserError when the options contradict
        those of the stored training.
        """
        names = ("checkpoint.tar", "best.tar")
        path = next((self.folder / n for n in names if (self.folder / n).exists()), None)
        if path is None:
            return
        state = load_checkpoint(path)
        if "options" in state:  # before the weights, which do not fit where sizes contradict
            check_options(path, state["options"], self.options)
        load_weights(self.model, path)
        self.done = int(state.get("epoch", 0))
        if "options" not in state:
            self.comparable = False
            print(f"{path}: weights of epoch {self.done}; the optimizer starts anew")
            return
        for stored_group, group in zip(
            state["optimizer"]["param_groups"], self.optimizer.param_groups, strict=True
        ):
            stored_group["capturable"] = group["capturable"]  # is of the device
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.stopping.load_state_dict(state["earlystopping"])
        print(
            f"{path}: continuing after epoch {self.done}; best test loss {self.stopping.best:.5g}"
        )
        before = state.get("episodes", state.get("about", {}))  # the latter of earlier versions
        for part, now in self.episodes.items():
            was = before.get(part, "others")
            if was != now:
                print(f"{path}: the episodes {part} were {was}, and are {now}")
        self.comparable = before.get("held out") == self.episodes["held out"]

    def measure_best(self, test: Callable[[], float]) -> None:
        """Make the loss to beat that of `best.tar` on the episodes that are held out now.

        `test` measures that of the model. A loss that was measured elsewhere could never be beaten,
        or by a worse model.
        """
        path = self.folder / "best.tar"
        latest = copy.deepcopy(self.model.state_dict())
        if not ranks.rank() and path.exists():
            load_weights(self.model, path)
        self.model.load_state_dict(ranks.from_first(self.model.state_dict))
        best = test()
        print(f"{path}: test loss {best:.5g} on the episodes that are held out here")
        # Of a checkpoint of another program: it may stay the best.
        if not ranks.rank() and not path.exists():
            save_checkpoint(path, {"epoch": self.done, "precision": best, "state_dict": latest})
        self.model.load_state_dict(latest)
        self.stopping.best, self.stopping.bad_epochs = best, 0
        self.scheduler.best, self.scheduler.num_bad_epochs = best, 0
