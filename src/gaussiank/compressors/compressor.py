"""What every compressor is: settings, frozen, and one verb, ``select``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

from torch import Tensor


class Selection(NamedTuple):
    """What a compressor chose.

    Attributes:
        indices: int32 ``[kept]`` ascending indices, without repeats.
        hint: small tensor to pass back at the next step (a threshold, for example), or None.
    """

    indices: Tensor
    hint: Tensor | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Turn:
    """All that a selection may depend on besides the vector; passed in, so that compressors hold no state.

    Args:
        step: optimizer steps taken, the same on every worker.
        rank: the worker's rank.
        part: number that tells vectors of one step apart, the same on every worker.
        hint: what the last selection on this vector returned, or None at the first.
    """

    step: int = 0
    rank: int = 0
    part: int = 0
    hint: Tensor | None = field(default=None)


class Compressor(ABC):
    """Choose which entries of an accumulated vector to send. Subclasses are frozen dataclasses of settings."""

    nonfinite_first: ClassVar[bool] = False
    """Whether infinities and NaN are chosen before all else; if not, the caller looks for them before."""

    sends_all: ClassVar[bool] = False
    """Whether every entry is sent, so that no index is needed and a dense all-reduce serves."""

    @property
    def keeps_rest(self) -> bool:
        """Whether what is not sent stays in the residual."""
        return True

    @abstractmethod
    def select(self, accumulated: Tensor, k: int, turn: Turn | None = None) -> Selection:
        """Choose about ``k`` entries.

        Args:
            accumulated: float32 or float64 ``[numel]``, finite unless ``nonfinite_first``. Not modified.
            k: entries asked for, 1 to numel.
            turn: step, rank, part and hint; None for a first step on rank 0.

        Returns:
            The indices, at most ``capacity(k, numel)`` of them, and the hint for the next turn.

        Raises:
            ValueError: ``accumulated`` is no flat vector, or ``k`` is out of range.
        """

    def capacity(self, k: int, numel: int) -> int | None:
        """Return the largest count that ``select`` can return, or None when only the data limits it."""
        return k
