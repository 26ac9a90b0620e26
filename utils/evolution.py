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
        self._basis: np.ndarray | None = None  # what is searched is y, of the vector y @ basis
        self._asked = np.empty((0, len(start)))  # the y of the candidates
        self._generation = 0
        self.average = start.copy()  # the running average of the means, (size,)

    @property
    def refining(self) -> bool:
        """Whether the search is in the coordinates of a basis."""
        return self._basis is not None

    @property
    def mean(self) -> np.ndarray:
        """The mean of the search distribution, (size,)."""
        return self._es.mean.copy() if self._basis is None else self._es.mean @ self._basis

    @property
    def sigma(self) -> float:
        """The step size of the search distribution."""
        return float(self._es.sigma)

    def ask(self, generation: int) -> np.ndarray:
        """The candidates of a generation, (population, size) float64; the first one is 1."""
        self._generation = generation
        self._generator = stream("candidates", self.seed, generation)
        self._asked = np.stack(self._es.ask())
        return self._asked.copy() if self._basis is None else self._asked @ self._basis

    def tell(self, fitness: np.ndarray) -> None:
        """Update the search distribution; fitness (population,) is to be maximised.

        It is that of the candidates that were asked for last.
        """
        self._es.tell(list(self._asked), (-fitness).tolist())
        generations = max(AVERAGE_GENERATIONS, AVERAGE_SHARE * self._generation)
        weight = 1 / min(self._generation, generations)
        self.average = (1 - weight) * self.average + weight * self.mean

    def restart(self, sigma: float, basis: np.ndarray | None = None) -> None:
        """Start anew from the mean, with candidates mean + sigma * y @ basis, y standard normal.

        The basis (size, size) is regular; without one y is the step itself. CMA-ES would not notice
        the new coordinates if it had the time to learn the covariance that they stand for: in n
        dimensions some n^2 candidates.
        """
        start = self.mean if basis is None else np.linalg.solve(basis.T, self.mean)
        self._es, self._basis = self._start(start, sigma), basis

    def state_dict(self) -> dict:
        """All numbers and arrays of the strategy, as plain data and tensors."""
        seen: dict[int, torch.Tensor] = {}
        state = {name: _dump(part, seen) for name, part in self._parts().items()}
        if self._basis is not None:
            state["basis"] = torch.from_numpy(self._basis)
        return state | {"average": torch.from_numpy(self.average)}

    def load_state_dict(self, state: dict) -> None:
        """Put back what `state_dict` gave, into a strategy of the same size and population."""
        self._es.ask()  # makes the attributes that cma adds with the first samples
        seen: dict[int, np.ndarray] = {}
        for name, part in self._parts().items():
            _restore(part, state[name], seen)
        self._basis = state["basis"].numpy() if "basis" in state else None
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


def even_basis(mean: np.ndarray, covariance: np.ndarray, actions: int = 3) -> np.ndarray:
    """Steps of a controller's parameters that change its actions evenly, as a basis (P, P).

    `mean` (D,) and `covariance` K (D, D) are those of what it sees, x = [z h]. Random weights
    change the actions where x varies most: the first four of 288 principal components have three
    quarters of the variance, while such things as the car's speed are told by the smaller ones. So
    the weights of an action are y (K + v I)^(-1/2), with v the mean variance of a component, on
    x - mean: the components that vary more than v change the actions alike, and the others as their
    weights allow. With standard normal y each raw action varies with a standard deviation of 1.
    Parameters are in the order of `Controller.flat_parameters`.
    """
    size = len(mean)
    variances, axes = np.linalg.eigh(covariance)
    scale = (variances.clip(0) + variances.mean()) ** -0.5
    block = np.zeros((size + 1, size + 1))  # y of an action -> its weights and bias
    block[:size, :size] = (axes * scale) @ axes.T
    block[:size, size] = -block[:size, :size] @ mean
    block[size, size] = 1
    block /= np.sqrt((scale**2 * variances).sum() + 1)
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
