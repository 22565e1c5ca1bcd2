"""Kernels: faster arithmetic for some layers in training on a processor, and nothing else.

Networks learn the same without them, up to rounding: see `tests/training/kernels/test_steps.py`.
`CONVSCOPE_KERNELS=0` turns them off. `norm_pool` also needs numba and is off without it.
"""

import os

from training.errors import RecipeError

KERNELS_VARIABLE = "CONVSCOPE_KERNELS"


def enabled() -> bool:
    """Return whether the environment leaves the kernels on, as it does by default.

    Raises:
        RecipeError: the variable is neither 0 nor 1.
    """
    value = os.environ.get(KERNELS_VARIABLE, "1")
    if value not in {"0", "1"}:
        raise RecipeError(f"{KERNELS_VARIABLE} is {value!r}; it can be 0 or 1")
    return value == "1"
