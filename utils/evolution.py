"""CMA-ES of the `cma` package, with randomness by generation and a state that can be stored."""

import warnings

import numpy as np
import torch

from utils.streams import stream

_PLAIN = (bool, int, float, str, type(None))


class Evolution:
    """Maximises a function of a vector by CMA-ES (Hansen 2016, arXiv 1604.00772).

    The samples of a generation depend on the search distribution, the seed and the
    generation's number alone, so there is no state of a random number generator to keep.
    """

    def __init__(
        self, start: np.ndarray, sigma: float, population: int, seed: int, diagonal: bool = False
    ):
        """`start` (size,) is the first mean."""
        # Not at the top, because the workers import that too, with their script, and need no cma.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of cma, about packages for plots
            import cma

        self.seed = seed
        self._generator = stream("candidates", seed)
        options = {
            "popsize": population,
            "CMA_diagonal": diagonal,
            "randn": lambda *shape: self._generator.standard_normal(shape),
            "verbose": -9,
        }
        self._start = lambda mean, sigma: cma.CMAEvolutionStrategy(mean, sigma, options)
        self._es = self._start(start, sigma)
        self._basis: np.ndarray | None = None  # what is searched is y, of the vector y @ basis
        self._asked = np.empty((0, len(start)))  # the y of the candidates

    @property
    def refined(self) -> bool:
        """Whether the search goes on in the coordinates of `refine`."""
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
        """The candidates of a generation, (population, size) float64."""
        self._generator = stream("candidates", self.seed, generation)
        self._asked = np.stack(self._es.ask())
        return self._asked.copy() if self._basis is None else self._asked @ self._basis

    def tell(self, fitness: np.ndarray) -> None:
        """Update the search distribution; fitness (population,) is to be maximised.

        It is that of the candidates that were asked for last.
        """
        self._es.tell(list(self._asked), (-fitness).tolist())

    def refine(self, basis: np.ndarray, sigma: float) -> None:
        """Start anew from the mean, with candidates mean + sigma * y @ basis, y standard normal.

        The basis (size, size) is regular. CMA-ES would not notice the new coordinates if it had
        the time to learn the covariance that they stand for: in n dimensions some n^2 candidates.
        """
        start = np.linalg.solve(basis.T, self.mean)
        self._es, self._basis = self._start(start, sigma), basis

    def state_dict(self) -> dict:
        """All numbers and arrays of the strategy, as plain data and tensors."""
        seen: dict[int, torch.Tensor] = {}
        state = {name: _dump(part, seen) for name, part in self._parts().items()}
        if self._basis is not None:
            state["basis"] = torch.from_numpy(self._basis)
        return state

    def load_state_dict(self, state: dict) -> None:
        """Put back what `state_dict` gave, into a strategy of the same size and population."""
        self._es.ask()  # makes the attributes that cma adds with the first samples
        seen: dict[int, np.ndarray] = {}
        for name, part in self._parts().items():
            _restore(part, state[name], seen)
        self._basis = state["basis"].numpy() if "basis" in state else None

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


def reliability(returns: np.ndarray) -> float:
    """The share of the candidates' differences in mean return (m, k) that is not chance.

    Two-way analysis of variance without interaction: what is left of the returns after the
    means of candidates and of tracks are taken off is noise. 1: no noise; 0: nothing else.
    0 as well for a single track, of which nothing can be told. NaN rows are left out.
    """
    returns = returns[np.isfinite(returns).all(axis=1)]
    m, k = returns.shape
    differences = returns.mean(axis=1).var(ddof=1) if m > 1 else 0
    if k == 1 or differences == 0:
        return 0.0
    rest = returns - returns.mean(1, keepdims=True) - returns.mean(0) + returns.mean()
    noise = (rest**2).sum() / ((m - 1) * (k - 1)) / k
    return float(np.clip(1 - noise / differences, 0, 1))


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
