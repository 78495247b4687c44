"""The laws that gradients are compared with: one a file, one line each in the table."""

from .generalised_gaussian import GeneralisedGaussian
from .laplace import Laplace
from .law import Law
from .logistic import Logistic
from .normal import Normal
from .student_t import StudentT
from .triangular import Triangular
from .uniform import Uniform

LAWS: dict[str, type[Law]] = {
    "normal": Normal,
    "laplace": Laplace,
    "logistic": Logistic,
    "student_t": StudentT,
    "generalised_gaussian": GeneralisedGaussian,
    "uniform": Uniform,
    "triangular": Triangular,
}
"""Name -> class. Fits, reports and tests are driven by this table."""

__all__ = [
    "LAWS",
    "GeneralisedGaussian",
    "Laplace",
    "Law",
    "Logistic",
    "Normal",
    "StudentT",
    "Triangular",
    "Uniform",
]
