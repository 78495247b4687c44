"""What may watch gradients on their way through the hook; the study's recorder is one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Protocol

from torch import Tensor

from gaussiank.layout import Layout
from gaussiank.sparse import SparseGradient


class Residuals(Protocol):
    """What an observer may ask of the error feedback."""

    def residuals(self, wanted: Layout, /) -> Tensor:
        """Return a copy of the committed residuals of a layout's parameters, as it lays them out: ``[numel]``."""
        ...

    def settle(self) -> bool:
        """End the step: commit its residuals. Only between steps."""
        ...


class Observer(Protocol):
    """Watch one worker's vectors step after step, and change none of them.

    The order within a step: ``begin``; then for each bucket ``taking``, ``taken`` and, some time later and perhaps in
    another thread, ``arrived``. The accumulated vector is not passed on, because a fused selection never holds it: it
    is the residual before the step plus the gradient or, with momentum correction, the residual after the step with
    what was taken in its place, as long as no collective puts entries of other workers there.
    """

    @property
    def settings(self) -> Mapping[str, object]:
        """What must be the same on every worker; compared when the model is compressed."""
        ...

    def attach(
        self,
        config: Mapping[str, object],
        numels: Mapping[str, int],
        residuals: Residuals,
        group: Any,
    ) -> None:
        """Learn the compression's settings, its parameters, where its residuals are, and the process group."""
        ...

    def begin(self, step: int, density: float) -> None:
        """Learn that the residuals of the last step are committed, and that another step begins."""
        ...

    def taking(self, layout: Layout, grads: Sequence[Tensor]) -> None:
        """Look at local gradients before anything is taken from them. They must not be modified or kept."""
        ...

    def taken(self, layout: Layout, k: int, sparse: SparseGradient | None) -> None:
        """Look at what was chosen; None when everything was."""
        ...

    def arrived(self, layout: Layout, grads: Sequence[Tensor]) -> None:
        """Look at the mean over workers. It must not be modified or kept."""
        ...


class Unobserved:
    """Watch nothing: what a reducer without an observer has."""

    settings: Mapping[str, object] = MappingProxyType({})

    def attach(self, config: Mapping[str, object], numels: Mapping[str, int], residuals: Residuals, group: Any) -> None:
        """Learn nothing."""

    def begin(self, step: int, density: float) -> None:
        """Learn nothing."""

    def taking(self, layout: Layout, grads: Sequence[Tensor]) -> None:
        """Look at nothing."""

    def taken(self, layout: Layout, k: int, sparse: SparseGradient | None) -> None:
        """Look at nothing."""

    def arrived(self, layout: Layout, grads: Sequence[Tensor]) -> None:
        """Look at nothing."""
