"""Everything the benchmark times: each compressor of the table on each backend, and the peers, all in one form."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from gaussiank import ops
from gaussiank.compressors import COMPRESSORS, Compressor, SIDCo, Turn
from gaussiank_lab.bench.peers import PEERS, Choose

SETTLE_TURNS = 30  # after these SIDCo's controller has found its stages: it moves one every 5 turns
SETTLE_ENTRIES = 1_000_000


class Taken(NamedTuple):
    """What an operator sends; it has removed it from the residual."""

    indices: Tensor
    values: Tensor


@dataclass(eq=False)
class Operator(ABC):
    """Add the gradient to the residual in place, choose, and remove what was chosen.

    Attributes:
        name: as the table of compressors, or the table of peers, has it.
        family: ``ours`` or ``peer``.
        backend: what the ops run on.
        state: ``steady`` with the hint of the last vector, ``cold`` without; ``stateless`` where there is none.
    """

    name: str
    family: str
    backend: str
    state: str

    @property
    def label(self) -> str:
        """Name and state, for people."""
        return f"{self.name} {self.state}" if self.state == "cold" else self.name

    def settle(self, accumulated: Tensor, density: float) -> None:
        """Bring the state to where it is in the middle of a training."""
        return

    @abstractmethod
    def take(self, grad: Tensor, residual: Tensor, k: int) -> Taken:
        """Do one step's work.

        Args:
            grad: float ``[numel]``. Not modified.
            residual: float32 ``[numel]``; becomes residual + grad without what was taken.
            k: entries asked for.
        """


@dataclass(eq=False)
class Ours(Operator):
    """One of the compressors."""

    compressor: Compressor
    hint: Tensor | None = None
    step: int = 0

    def settle(self, accumulated: Tensor, density: float) -> None:
        """Find a first hint on the first million entries; SIDCo's controller needs many turns to come to rest."""
        if self.state != "steady":
            return
        part = accumulated[:SETTLE_ENTRIES]
        k = max(1, round(density * part.numel()))
        for step in range(SETTLE_TURNS if isinstance(self.compressor, SIDCo) else 1):
            self.hint = self.compressor.select(part, k, Turn(step, hint=self.hint)).hint

    def take(self, grad: Tensor, residual: Tensor, k: int) -> Taken:
        """Add, choose with the compressor, remove: in one op where it has one, as training does."""
        turn = Turn(self.step, hint=None if self.state == "cold" else self.hint)
        self.step += 1
        taken = self.compressor.take(grad, residual, residual, k, turn)
        if taken is not None:
            self.hint = taken.hint
            return Taken(taken.indices, taken.values)
        ops.accumulate(residual, grad, out=residual)
        indices, self.hint = self.compressor.select(residual, k, turn)
        values = residual[indices]
        residual[indices] = 0
        return Taken(indices, values)


@dataclass(eq=False)
class Theirs(Operator):
    """One of the peers."""

    choose: Choose
    random: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(0))

    def take(self, grad: Tensor, residual: Tensor, k: int) -> Taken:
        """Add, choose by the published rule, remove."""
        residual.add_(grad)
        indices = self.choose(residual, k, self.random)
        values = residual[indices]
        residual[indices] = 0
        return Taken(indices, values)


def operator_names() -> tuple[str, ...]:
    """Return what can be asked for: compressors that choose, then peers."""
    return (*(name for name, kind in COMPRESSORS.items() if not kind.sends_all), *PEERS)


def operators(names: Sequence[str], backends: Sequence[str]) -> list[Operator]:
    """Make the named operators: ours once for each backend, and cold as well where the hint is a threshold."""
    made: list[Operator] = []
    for name in names:
        if name in PEERS:
            library = "numpy" if name.startswith("numpy") else "torch"
            made.append(Theirs(name, "peer", library, "stateless", PEERS[name].choose))
            continue
        for backend in backends:
            compressor = COMPRESSORS[name]()
            made += [Ours(name, "ours", backend, state, compressor) for state in _states(compressor)]
    return made


def _states(compressor: Compressor) -> tuple[str, ...]:
    hint = compressor.select(torch.linspace(-1, 1, 1000), 100).hint
    if hint is None:
        return ("stateless",)
    return ("steady", "cold") if hint.dim() == 0 else ("steady",)  # a threshold is a guess; other state is no guess
