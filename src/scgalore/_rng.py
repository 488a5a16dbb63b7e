"""Seeds from the ``rng`` argument (SPEC 7): an integer, a NumPy generator or ``None``."""

import operator
from typing import TYPE_CHECKING

from scgalore.errors import OptionError

if TYPE_CHECKING:
    from scgalore._typing import Rng

__all__ = ["seed_from"]

N_SEEDS = 2**32
"""Number of seeds that NumPy's legacy generator, scikit-learn, Lightning and torch all accept."""


def seed_from(rng: "Rng") -> int:
    """Turn ``rng`` into a seed below 2**32.

    An integer is used as the seed; a generator is advanced by one draw, so a second call with it gives another seed;
    ``None`` gives fresh entropy. Global random state is neither read nor changed.

    Parameters
    ----------
    rng
        Integer, :class:`numpy.random.Generator` or ``None``.

    Returns
    -------
    Seed of all random draws of one call.
    """
    import numpy as np

    if rng is None:
        rng = np.random.default_rng()
    if isinstance(rng, np.random.Generator):
        return int(rng.integers(N_SEEDS))
    if not isinstance(rng, int | np.integer) or isinstance(rng, bool):
        msg = f"rng is {rng!r}, expected an integer, a numpy.random.Generator or None."
        raise OptionError(msg)
    seed = operator.index(rng)
    if not 0 <= seed < N_SEEDS:
        msg = f"rng is {seed}, expected an integer from 0 to {N_SEEDS - 1}."
        raise OptionError(msg)
    return seed
