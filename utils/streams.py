"""Random numbers, a stream of its own for each purpose."""

import numpy as np


def stream(purpose: str, *key: int) -> np.random.Generator:
    """A generator for a purpose, given by name, and a key such as (seed, generation).

    No two purposes share numbers, whatever their keys: with the key alone, CMA-ES's generation n
    would have the normal numbers of episode n's actions.
    """
    return np.random.default_rng([int.from_bytes(purpose.encode(), "big"), *key])
