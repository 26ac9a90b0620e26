"""Which controller is better: evaluations on fixed tracks, and the tracks that are hard."""

from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from envs.parallel import run_rollouts
from envs.simulated_carracing import Dreaming
from envs.simulator import MAX_STEPS
from envs.tracks import track_seeds
from models.controller import Controller
from models.logdir import Driving, load_controller, new_controller
from utils.checkpoint import save_checkpoint
from utils.cli import UserError
from utils.evolution import Progress
from utils.workers import WorkerPool

CONTENDERS = 3  # controllers in an evaluation: the mean, its running average, the best candidate


def load_alike(path: Path, driving: Driving) -> tuple[Controller, dict]:
    """The controller at `path` and its checkpoint. Raises UserError where it drives otherwise."""
    controller, its_driving, state = load_controller(path)
    if its_driving != driving:
        raise UserError(
            f"{path} drives with {its_driving}, not {driving}; use --noreload to start afresh"
        )
    return controller, state


def first_mean(path: Path | None, driving: Driving) -> np.ndarray:
    """Where a search starts, (P,): at the controller in `path`, if any, or at zero; says which."""
    zero = np.zeros(new_controller(driving).flat_parameters().numel())
    if path is None:
        return zero
    there = load_alike(path, driving)[0].flat_parameters().double().numpy()
    if not np.isfinite(there).all():
        print(f"{path}: has weights that are NaN, so the search starts from zero")
        return zero
    print(f"{path}: the search starts from it")
    return there


class Judge:
    """Scores controllers on the evaluation tracks and keeps the best one in `best.tar`."""

    def __init__(self, path: Path, pool: WorkerPool, rollouts: int, driving: Driving, models: str):
        """`models` is the fingerprint of V and M, `rollouts` the number of tracks."""
        self.path, self.pool, self.driving = path, pool, driving
        self.tracks = track_seeds("evaluate", rollouts)
        # Returns can be compared under the same ones.
        self.conditions = {"eval-rollouts": rollouts, "models": models}
        self.best = -np.inf

    def load(self) -> None:
        """Know the best return so far; what was scored under other conditions is scored again."""
        if not self.path.exists():
            return
        controller, state = load_alike(self.path, self.driving)
        conditions = dict(state.get("conditions", state.get("about", {})))  # the latter of earlier
        gymnasium = conditions.pop("simulator", "gymnasium") == "gymnasium"  # versions, with two
        if gymnasium and conditions == self.conditions and "reward" in state:
            self.best = float(state["reward"])
            print(f"{self.path}: best return so far {self.best:.1f}")
            return
        print(f"{self.path}: scored under other conditions, evaluating it again", flush=True)
        parameters = controller.flat_parameters().numpy()
        returns = self.score(parameters[None])[0][0]
        if np.isfinite(returns).all():
            self.save(parameters, returns, int(state.get("epoch", 0)))
            score = f"{returns.mean():.1f} +- {returns.std():.1f}"
            print(f"{self.path}: {score} on {len(self.tracks)} tracks", flush=True)
        else:
            print(f"{self.path}: it returns NaN, so anything is better")

    def is_due(self, progress: Progress, every: int | None) -> bool:
        """Every so many generations, or so that evaluations take at most a quarter of all steps."""
        if every is not None:
            return progress.generation % every == 0
        coming = CONTENDERS * len(self.tracks) * MAX_STEPS
        return 3 * (progress.evaluation_steps + coming) <= progress.steps

    def score(
        self, parameters: np.ndarray, label: str | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Controllers (m, P) -> returns and lengths (m, tracks); a progress bar with a label."""
        with rollout_bar(len(parameters) * len(self.tracks), label) as bar:
            return run_rollouts(self.pool, parameters, self.tracks, bar.update)

    def evaluate(
        self, contenders: dict[str, np.ndarray], generation: int, label: str | None = None
    ) -> tuple[np.ndarray, int]:
        """Score contenders (P,) by their names and keep the best that ever was.

        Returns their mean returns, -inf for NaN, and the steps it took.
        """
        returns, lengths = self.score(np.stack(list(contenders.values())), label)
        means = np.nan_to_num(returns.mean(axis=1), nan=-np.inf)
        winner = int(means.argmax())
        line = ", ".join(
            f"{name} {r.mean():.1f} +- {r.std():.1f}"
            for name, r in zip(contenders, returns, strict=True)
        )
        if means[winner] > self.best:
            self.save(list(contenders.values())[winner], returns[winner], generation)
            line += f"; saved the {list(contenders)[winner]}"
        print(
            f"evaluation after generation {generation} on {len(self.tracks)} tracks: {line}; "
            f"best {self.best:.1f}",
            flush=True,
        )
        return means, int(lengths.sum())

    def save(self, parameters: np.ndarray, returns: np.ndarray, generation: int) -> None:
        controller = new_controller(self.driving)
        controller.load_flat(torch.from_numpy(parameters.astype(np.float32)))
        self.best = float(returns.mean())
        save_checkpoint(
            self.path,
            {
                "epoch": generation,
                "reward": self.best,
                "state_dict": controller.state_dict(),
                "driving": self.driving._asdict(),
                "conditions": self.conditions,
            },
        )


def rollout_bar(rollouts: int, label: str | None) -> tqdm:
    """A progress bar, unless there is no label."""
    return tqdm(total=rollouts, unit="rollout", desc=label, disable=label is None, leave=False)


def screen(
    pool: WorkerPool,
    parameters: np.ndarray,
    drawn: list[int],
    n: int,
    patience: int,
    dream: Dreaming | None = None,
) -> tuple[list[int], float, int]:
    """n of the tracks that are `drawn`, half of them those on which a controller (P,) does worst.

    A good controller leaves the road on one track of ten or twenty, and the candidates around it on
    the same ones. Few generations would show them any of these. Also gives the mean return on all
    tracks that are drawn, and the steps it took.
    """
    returns, lengths = run_rollouts(pool, parameters[None], drawn, patience=patience, dream=dream)
    print(
        f"screening: the mean returns {returns.mean():.1f} +- {returns.std():.1f} on "
        f"{len(drawn)} tracks, minimum {returns.min():.1f}",
        flush=True,
    )
    worst = returns[0].argsort().tolist()  # NaN last
    hard, others = worst[: -(-n // 2)], sorted(worst[-(-n // 2) :])
    return [drawn[i] for i in hard + others[: n // 2]], returns.mean(), int(lengths.sum())
