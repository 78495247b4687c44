"""The recipes: one a file, or two of one comparison, and one line each in the table."""

from gaussiank_lab.reproduce.recipe import Recipe

from .accuracy_bytes import ACCURACY_BYTES
from .accuracy_table import ACCURACY_TABLE
from .batch_size import BATCH_SIZE
from .bounds import BOUNDS_REAL, BOUNDS_SYNTHETIC
from .convergence import CONVERGENCE, GAUSSIANK_CONVERGENCE
from .distributions import HISTOGRAMS, PI_SQUARED
from .iteration_time import ITERATION_TIME
from .kept import KEPT
from .operator_time import OPERATOR_TIME
from .sensitivity import SENSITIVITY
from .warmup import WARMUP

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        CONVERGENCE,
        HISTOGRAMS,
        PI_SQUARED,
        BOUNDS_SYNTHETIC,
        BOUNDS_REAL,
        OPERATOR_TIME,
        GAUSSIANK_CONVERGENCE,
        SENSITIVITY,
        ACCURACY_BYTES,
        ACCURACY_TABLE,
        ITERATION_TIME,
        KEPT,
        WARMUP,
        BATCH_SIZE,
    )
}
"""Name -> recipe, in the order of the paper; what it does not show comes last."""

__all__ = ["RECIPES"]
