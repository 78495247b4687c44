"""One run of the study: its settings as data, and the key that its row goes by."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

Method = Literal["dense", "bf16", "powersgd", "sparse", "local", "demo"]
Clip = Literal["none", "local", "mean"]
By = Literal["", "entry", "row", "column", "inputs", "block"]
Sums = Literal["fp32", "8bit"]


class Size(NamedTuple):
    """A transformer on bytes, and how much text one example holds."""

    width: int
    layers: int
    heads: int
    context: int


SIZES: dict[str, Size] = {
    "tiny": Size(32, 1, 2, 16),
    "small": Size(80, 2, 5, 32),
    "medium": Size(128, 4, 4, 32),
    "large": Size(320, 4, 10, 64),
}
"""Name -> size: 28,864 parameters for tests, 195,360, 854,272 and 5,084,800."""


@dataclass(frozen=True)
class StudySetting:
    """Say what is trained, and how its workers exchange.

    Args:
        method: ``dense`` or ``bf16`` AdamW; ``powersgd`` of a rank; ``sparse`` exchange at every step; ``local`` steps
            with an exchange every so many; ``demo``, the rule of DeMo without its cosine transform.
        lr: highest learning rate; it rises over 50 steps and falls by a cosine to a tenth.
        model: key of ``SIZES``.
        workers: simulated in one process.
        batch: examples of a worker and step.
        steps: of the optimizer, inner ones for ``local``.
        seed: of weights and data.
        beta1: of Adam, momentum.
        beta2: of Adam, or of the preconditioner.
        density: share of entries to send.
        compressor: as ``compress`` takes it.
        scope: as ``compress`` takes it.
        wire: as ``compress`` takes it; ``dense`` in ``local`` sends float32 without selection, ``dense+8bit`` 8 bits.
        clip: norm 1 of each worker's gradient before selection, of the mean, or none.
        warm: whether the density falls from 1/4 to the target over the first tenth.
        precondition: divide gradients by the root of their second moment before selection, which is kept by entry, by
            row, by column, by column of all but embedding and head (``inputs``), or by whole matrix; then AdamW's step
            is plain SGD.
        lagged: whether the divisor is the state of the step before and the worker's own gradient, as in a real
            exchange, or the state of the step itself.
        sums: how what workers measure for that state travels: ``8bit`` is the library's ``AdamRows``.
        correction: momentum of the local gradient before selection.
        masking: whether it is forgotten where an entry is sent.
        nesterov: whether it looks a step ahead.
        lookahead: share of the residual that each worker applies to its own weights before its gradient, or its round.
        frozen: share of the steps, dense, after which Adam's second moment stays (1-bit Adam), or 0.
        rank: of ``powersgd``.
        sync_every: inner steps from one exchange to the next.
        decay: of the residual at each exchange.
        outer_lr: of ``local``.
        outer_momentum: Nesterov's, of ``local``.
        fragments: parts of the model that take turns, of ``local``.
        sync_delay: inner steps from a fragment's difference to its mean's arrival, of ``local``.
        mixing: share of its local weights that a worker keeps when the mean arrives; with none, what it learnt in
            between is put on top of the agreed ones.
    """

    method: Method
    lr: float
    model: str = "small"
    workers: int = 4
    batch: int = 4
    steps: int = 2000
    seed: int = 0
    beta1: float = 0.9
    beta2: float = 0.999
    density: float = 1.0
    compressor: str = "topk"
    scope: str = "bucket"
    wire: str = "rice+2bit"
    clip: Clip = "none"
    warm: bool = False
    precondition: By = ""
    lagged: bool = True
    sums: Sums = "fp32"
    correction: float = 0.0
    masking: bool = False
    nesterov: bool = False
    lookahead: float = 0.0
    frozen: float = 0.0
    rank: int = 4
    sync_every: int = 1
    decay: float = 1.0
    outer_lr: float = 1.0
    outer_momentum: float = 0.0
    fragments: int = 1
    sync_delay: int = 0
    mixing: float | None = None

    @property
    def changes(self) -> dict[str, Any]:
        """Method, learning rate, and what differs from the defaults."""
        fields = dataclasses.fields(self)
        return {
            field.name: value for field in fields if (value := getattr(self, field.name)) != field.default
        }  # a new field with a default changes no key

    @property
    def key(self) -> str:
        """What a row goes by.

        Example:
            >>> StudySetting("sparse", 0.012, beta1=0.0, density=1 / 64).key
            'method=sparse lr=0.012 beta1=0 density=0.015625'
        """
        return " ".join(f"{name}={_text(value)}" for name, value in self.changes.items())

    @property
    def line(self) -> str:
        """Its key without learning rate and seed: what these are tried for."""
        return " ".join(part for part in self.key.split() if not part.startswith(("lr=", "seed=")))


def _text(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
