"""Which tracks are driven for what: seeds of the environments, disjoint by purpose.

An environment's seed has 31 bits; the first two are the purpose, so that no choice of
`--seed` lets a training see a track that an evaluation uses.
"""

import numpy as np

PURPOSES = {"train": 0, "evaluate": 1, "test": 2, "data": 3}


def track_seeds(purpose: str, n: int, *key: int) -> list[int]:
    """n seeds for environments, the same for the same purpose and key, a prefix for a smaller n.

    `key` names the draw: (seed, generation) in training, (seed,) in a test.
    """
    generator = np.random.default_rng([PURPOSES[purpose], *key])
    bits = generator.integers(2**29, size=n)
    return [PURPOSES[purpose] << 29 | int(b) for b in bits]
