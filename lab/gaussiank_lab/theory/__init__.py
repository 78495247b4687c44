"""Laws on scipy, bounds and rates; needs no torch."""

from .bounds import BOUNDS, CUBED, LINEAR, SQUARED, Bound
from .laws import LAWS, GeneralisedGaussian, Laplace, Law, Logistic, Normal, StudentT, Triangular, Uniform
from .rates import Rate
from .residual import NoiseResidual, residual_energy_bound

__all__ = [
    "BOUNDS",
    "CUBED",
    "LAWS",
    "LINEAR",
    "SQUARED",
    "Bound",
    "GeneralisedGaussian",
    "Laplace",
    "Law",
    "Logistic",
    "NoiseResidual",
    "Normal",
    "Rate",
    "StudentT",
    "Triangular",
    "Uniform",
    "residual_energy_bound",
]
