"""What every compressor is: settings, frozen, and one verb, ``select``; where it has a fused form, also ``take``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from gaussiank import ops
from gaussiank.ops import RowFormat, Taken


class Selection(NamedTuple):
    """What a compressor chose.

    Attributes:
        indices: int32 ``[kept]`` ascending indices, without repeats.
        hint: small tensor to pass back at the next step (a threshold, for example), or None.
    """

    indices: Tensor
    hint: Tensor | None = None


@dataclass(frozen=True, slots=True, eq=False)
class SelectContext:
    """All that a selection may depend on besides the vector; passed in, so that compressors hold no state.

    Args:
        step: backwards that have exchanged, used by an optimizer or not; the same on every worker.
        rank: the worker's rank.
        part: number that tells vectors of one step apart, the same on every worker.
        hint: what the last selection on this vector returned, or None at the first.
        row: the row that the entries will be sent in, as they are; for a compressor that ``writes_rows``.
    """

    step: int = 0
    rank: int = 0
    part: int = 0
    hint: Tensor | None = field(default=None)
    row: RowFormat | None = None

    def threshold(self, device: torch.device) -> Tensor | None:
        """Return the hint as a threshold on a device: a 0-d tensor, or None without one.

        A hint of another shape comes from another compressor, in a state that was saved before the change.
        """
        return None if self.hint is None or self.hint.dim() else self.hint.to(device)


class Compressor(ABC):
    """Choose which entries of an accumulated vector to send. Subclasses are frozen dataclasses of settings."""

    nonfinite_first: ClassVar[bool] = False
    """Whether infinities and NaN are chosen before all else; if not, the caller looks for them before."""

    writes_rows: ClassVar[bool] = False
    """Whether ``take`` passes on how entries are sent, so that a kernel can write them there at once."""

    sends_all: ClassVar[bool] = False
    """Whether every entry is sent, so that no index is needed and a dense all-reduce serves."""

    cuts: ClassVar[bool] = False
    """Whether fewer entries than asked are sent, so that a density of 1 does not send all."""

    @property
    def keeps_rest(self) -> bool:
        """Whether what is not sent stays in the residual."""
        return True

    @property
    def dense_dtype(self) -> torch.dtype | None:
        """What a dense vector is rounded to on its way; None for its own dtype."""
        return None

    @property
    def draws_alike(self) -> bool:
        """Whether every worker chooses the same indices of whatever is finite: then ``drawn`` says which."""
        return False

    def drawn(self, numel: int, k: int, turn: SelectContext, device: torch.device) -> Tensor:
        """Return the int32 indices that ``select`` chooses of any vector of ``numel``, the same on every worker.

        Raises:
            RuntimeError: they depend on the vector or the rank: not ``draws_alike``.
        """
        raise RuntimeError(f"compressor must draw the same indices on every worker, got {self}. Send indices instead.")

    @abstractmethod
    def select(self, accumulated: Tensor, k: int, turn: SelectContext | None = None) -> Selection:
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

    def take(
        self, grad: Tensor, residual: Tensor, out: Tensor, k: int, turn: SelectContext | None = None
    ) -> Taken | None:
        """Add, choose and remove in one pass over memory, if there is a fused form for this turn.

        What is chosen is what ``select`` chooses of ``residual + grad``, and
        ``out_after + taken == residual_before + grad``, bit for bit. When there are infinities or NaN in the sum, and
        not ``nonfinite_first``, they alone are taken, the first ``capacity`` of them.

        Args:
            grad: float ``[numel]``; narrower dtypes are converted in the pass. Not modified.
            residual: float32 ``[numel]``, or float64 for a float64 ``grad``. Not modified, unless it is ``out``.
            out: where the sum goes, with zeros where it was taken: ``residual`` itself or a buffer apart from it.
            k: entries asked for, 1 to numel.
            turn: as for ``select``.

        Returns:
            What was taken, or None: then nothing has been written, and the caller adds, selects and removes itself.

        Raises:
            ValueError: a dtype, device or length does not fit, ``k`` is out of range, or buffers overlap.
        """
        return None

    def capacity(self, k: int, numel: int) -> int | None:
        """Return the largest count that ``select`` can return, or None when only the data limits it."""
        return k


def finish_take(compressor: Compressor, out: Tensor, k: int, turn: SelectContext | None, *, finite: bool) -> Taken:
    """Choose from a sum that lies in ``out``, and remove it there: the way of ``take`` when its one pass did not do.

    Args:
        compressor: whose ``select`` chooses, if the sum is finite.
        out: float ``[numel]`` sum; becomes zero where it was taken.
        k: entries asked for.
        turn: as for ``select``.
        finite: whether the sum is; if not, infinities and NaN are taken.
    """
    hint = None
    if finite:
        indices, hint = compressor.select(out, k, turn)
    else:
        numel = out.numel()
        indices = ops.nonfinite_indices(out, compressor.capacity(k, numel) or numel)
    values = out[indices]
    out[indices] = 0
    return Taken(indices, values, hint)


def put_back(out: Tensor, indices: Tensor, values: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
    """Keep the entries of a choice where the mask ``keep`` is set, and write the rest back to ``out``."""
    rest = ~keep
    out[indices[rest]] = values[rest]
    return indices[keep], values[keep]
