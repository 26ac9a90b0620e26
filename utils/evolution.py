"""CMA-ES of the `cma` package, with randomness by generation and a state that can be stored."""

import warnings
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from utils.cli import UserError
from utils.streams import stream

_PLAIN = (bool, int, float, str, type(None))


# Generations in the running average of the distribution's means: all of the first so many, later
# about this share of all so far. Near its end a search walks around the optimum, and the longer the
# average, the nearer it comes (Polyak and Juditsky 1992).
AVERAGE_GENERATIONS, AVERAGE_SHARE = 10, 0.25


class Evolution:
    """Maximises a function of a vector by CMA-ES (Hansen 2016, arXiv 1604.00772).

    The samples of a generation depend on the search distribution, the seed and the
    generation's number alone, so there is no state of a random number generator to keep.
    """

    def __init__(self, start: np.ndarray, sigma: float, population: int, seed: int):
        """`start` (size,) is the first mean."""
        # Not at the top, because the workers import that too, with their script, and need no cma.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of cma, about packages for plots
            import cma

        self.seed = seed
        self._generator = stream("candidates", seed)
        options = {
            "popsize": population,
            "randn": lambda *shape: self._generator.standard_normal(shape),
            "verbose": -9,
        }
        self._start = lambda mean, sigma: cma.CMAEvolutionStrategy(mean, sigma, options)
        self._es = self._start(start, sigma)
        # With a basis what is searched is y, of the vectors offset + y @ basis.
        self._basis: np.ndarray | None = None
        self._offset = np.zeros(len(start))
        self.phase = ""  # what `restart` was told last
        self._asked = np.empty((0, len(start)))  # the y of the candidates
        self._generation = 0
        self.average = start.copy()  # the running average of the means, (size,)

    @property
    def mean(self) -> np.ndarray:
        """The mean of the search distribution, (size,)."""
        return self._vectors(self._es.mean)

    @property
    def sigma(self) -> float:
        """The step size of the search distribution."""
        return float(self._es.sigma)

    def ask(self, generation: int) -> np.ndarray:
        """The candidates of a generation, (population, size) float64; the first one is 1."""
        self._generation = generation
        self._generator = stream("candidates", self.seed, generation)
        self._asked = np.stack(self._es.ask())
        return self._vectors(self._asked)

    def _vectors(self, y: np.ndarray) -> np.ndarray:
        return y.copy() if self._basis is None else self._offset + y @ self._basis

    def tell(self, fitness: np.ndarray) -> None:
        """Update the search distribution; fitness (population,) is to be maximised.

        It is that of the candidates that were asked for last.
        """
        self._es.tell(list(self._asked), (-fitness).tolist())
        generations = max(AVERAGE_GENERATIONS, AVERAGE_SHARE * self._generation)
        weight = 1 / min(self._generation, generations)
        self.average = (1 - weight) * self.average + weight * self.mean

    def restart(self, phase: str, sigma: float, basis: np.ndarray | None = None) -> None:
        """Start anew from the mean, with candidates mean + sigma * y @ basis, y standard normal.

        A basis (k, size) leaves only k dimensions to be searched, and CMA-ES goes about size / k
        times as far in a generation; without one y is the step itself.
        """
        self._offset = self.mean
        start = self._offset if basis is None else np.zeros(len(basis))
        self._es, self._basis, self.phase = self._start(start, sigma), basis, phase

    def state_dict(self) -> dict:
        """All numbers and arrays of the strategy, as plain data and tensors."""
        seen: dict[int, torch.Tensor] = {}
        state = {name: _dump(part, seen) for name, part in self._parts().items()}
        if self._basis is not None:
            state["basis"] = torch.from_numpy(self._basis)
            state["offset"] = torch.from_numpy(self._offset)
        return state | {"average": torch.from_numpy(self.average), "phase": self.phase}

    def load_state_dict(self, state: dict) -> None:
        """Put back what `state_dict` gave, into a strategy of the same size and population."""
        self._basis = state["basis"].numpy() if "basis" in state else None
        # Earlier versions have no offset, and a basis where they refine alone.
        self.phase = state.get("phase", "search" if self._basis is None else "refine")
        if self._basis is not None:
            self._es = self._start(np.zeros(len(self._basis)), 1.0)
        if "offset" in state:
            self._offset = state["offset"].numpy().copy()
        self._es.ask()  # makes the attributes that cma adds with the first samples
        seen: dict[int, np.ndarray] = {}
        for name, part in self._parts().items():
            _restore(part, state[name], seen)
        self.average = state["average"].numpy().copy()

    def _parts(self) -> dict:
        """The objects that change from generation to generation."""
        es = self._es
        return {
            "es": es,
            "sampler": es.sm,
            "step_size": es.adapt_sigma,
            "fitness": es.fit,
            "scaling": es.sigma_vec,
        }


def component_basis(
    mean: np.ndarray, covariance: np.ndarray, components: int, actions: int = 3
) -> np.ndarray:
    """Steps of a controller by the principal components of what it sees, (actions * (k + 1), P).

    `mean` (D,) and `covariance` (D, D) are those of x = [z h], k is at most D. An action's step is
    a weight for each of the first k components, scaled to variance 1, and a constant. Sixteen of
    the 288 have 93% of the variance, and a trained controller that is left only those drives nearly
    as well; in all weights most of a step is noise. With standard normal factors each raw action
    varies with a standard deviation of 1. Parameters are in the order of
    `Controller.flat_parameters`.
    """
    size = len(mean)
    variances, axes = np.linalg.eigh(covariance)
    least = variances[-1] * len(mean) * np.finfo(np.float32).eps  # what is 0 but for rounding
    kept = [i for i in range(size - 1, -1, -1) if variances[i] > least][:components]
    rows = (axes[:, kept] / np.sqrt(variances[kept])).T
    block = np.zeros((len(kept) + 1, size + 1))  # factors of an action -> its weights and bias
    block[:-1, :size] = rows
    block[:-1, size] = -rows @ mean
    block[-1, size] = 1
    block /= np.sqrt(len(block))
    blocks = np.kron(np.eye(actions), block)
    columns = np.arange(actions * (size + 1)).reshape(actions, size + 1)
    return blocks[:, np.concatenate([columns[:, :size].ravel(), columns[:, size]])]


@dataclass
class Progress:
    """How far a training is; steps are those of the environment."""

    generation: int = 0
    evaluated: int = 0  # the generation of the last evaluation
    steps: int = 0  # without those of evaluations
    evaluation_steps: int = 0
    seconds: float = 0.0
    champion: Tensor | None = None  # the last generation's best candidate, (P,)
    history: list[list[float]] = field(default_factory=list)  # see `record`
    evaluations: list[list[float]] = field(default_factory=list)  # the same, the contenders' means

    def record(self, rows: list[list[float]], *values: float) -> None:
        """Add (generation, steps, seconds, values...) to `history` or `evaluations`."""
        row = (self.generation, self.steps, self.seconds, *values)
        rows.append([float(value) for value in row])


def finite_fitness(returns: np.ndarray) -> np.ndarray:
    """Fitness (m,): mean of the returns (m, k); with one that is NaN, the generation's worst.

    Raises UserError where there is no other.
    """
    fitness = returns.mean(axis=1)
    bad = ~np.isfinite(fitness)
    if bad.all():
        raise UserError("every candidate's return is NaN: V or M in the logdir are broken")
    if bad.any():
        print(f"{bad.sum()} candidates acted or returned NaN and get the worst fitness")
        fitness[bad] = fitness[~bad].min()
    return fitness


def _storable(value) -> bool:
    if isinstance(value, np.ndarray | np.generic):
        return value.dtype.kind in "biuf"
    if type(value) in (list, tuple):
        return all(_storable(item) for item in value)
    if type(value) is dict:
        return all(isinstance(key, str) and _storable(item) for key, item in value.items())
    return isinstance(value, _PLAIN)


def _dump(part: object, seen: dict) -> dict:
    """The plain attributes of an object; an array that has several names is kept once."""

    def convert(value):
        if isinstance(value, np.ndarray):
            if id(value) not in seen:
                seen[id(value)] = torch.from_numpy(np.array(value))
            return seen[id(value)]
        if isinstance(value, np.generic):
            return value.item()
        if type(value) in (list, tuple):
            return type(value)(convert(item) for item in value)
        if type(value) is dict:
            return {key: convert(item) for key, item in value.items()}
        return value

    return {name: convert(value) for name, value in vars(part).items() if _storable(value)}


def _restore(part: object, state: dict, seen: dict) -> None:
    """Set an object's plain attributes; those that shared an array share one again."""

    def convert(value):
        if isinstance(value, torch.Tensor):
            # In the order it had in memory: a matrix product is rounded in another way in another.
            return seen.setdefault(value.data_ptr() or id(value), value.numpy().copy(order="K"))
        if type(value) in (list, tuple):
            return type(value)(convert(item) for item in value)
        if type(value) is dict:
            return {key: convert(item) for key, item in value.items()}
        return value

    for name, value in state.items():
        setattr(part, name, convert(value))
