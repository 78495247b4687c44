"""The ways to exchange that the network benchmark knows, read from text."""

from __future__ import annotations

from dataclasses import dataclass

from gaussiank.autotune import parse_policy
from gaussiank.codec import Wire
from gaussiank.compressors import parse_compressor
from gaussiank.parsing import parse_spec
from gaussiank.schedule import require_density
from gaussiank_lab.train.local import (
    LOCAL_METHODS,
    POWERSGD,
    SYNC_EVERY,
    DiLoCo,
    Local,
    PowerSGD,
    local_method,
    powersgd_method,
)

DDP = "ddp"
HOOKS = ("ddp-fp16", "ddp-bf16", "ddp-powersgd")
PAPER = {"paper-topk": "torch.topk", "paper-dgc": "published DGC", "paper-gaussiank": "published Gaussian_k"}
"""Name -> rule among the benchmark's peers."""

ADAM_ROWS = "adamrows"

ALONE = "alone"
"""No exchange at all: what the others are compared with to tell computing from waiting."""


@dataclass(frozen=True)
class Rows:
    """AdamW's step with a sparse exchange: gradients divided by rows (``AdamRows``), Top_k, then SGD.

    Args:
        density: share of entries to send.
        scope: where k is counted.
        wire: how they travel.
        collective: how workers agree.
    """

    density: float = 1 / 64
    scope: str = "layer"
    wire: str = "rice+2bit"
    collective: str = "allgather"

    def __post_init__(self) -> None:
        require_density(self.density)


@dataclass(frozen=True)
class NetMethod:
    """A way to exchange gradients, or what optimizers did.

    Attributes:
        name: as the user wrote it.
        family: ``ddp``, ``ours``, ``paper``, or ``alone``.
        compressor: of ours.
        collective: of ours.
        wire: of ours, or None for its default.
        special: settings of ``adamrows``, ``local``, ``diloco`` and ``powersgd``, whose density is their own.
    """

    name: str
    family: str
    compressor: str = ""
    collective: str = "allgather"
    wire: str | None = None
    special: Rows | Local | DiLoCo | PowerSGD | None = None

    @property
    def period(self) -> int:
        """Steps after which they repeat: those of a round, or 1."""
        return self.special.sync_every or SYNC_EVERY if isinstance(self.special, Local | DiLoCo) else 1

    @property
    def measures_link(self) -> bool:
        """Whether it looks at the link when it is set up, which must then be as slow as in the measurement."""
        return self.family == "ours" and self.collective.startswith("auto")


def parse_method(text: str) -> NetMethod:
    """Read a method: a name of DDP's or the paper's, or ``compressor/collective/wire`` of ours.

    Raises:
        ValueError: it is none.

    Example:
        >>> parse_method("topk/split").collective, parse_method("paper-dgc").family
        ('split', 'paper')
        >>> parse_method("local:sync_every=30").period, parse_method("adamrows").special.density
        (30, 0.015625)
    """
    name = text.strip()
    if name == ALONE:
        return NetMethod(name, "alone")
    if name == "ddp-powersgd":
        return NetMethod(name, "ddp", special=PowerSGD())
    if name in (DDP, *HOOKS):
        return NetMethod(name, "ddp")
    if (low_rank := powersgd_method(name)) is not None:
        return NetMethod(name, "ddp", special=low_rank)
    if name in PAPER:
        return NetMethod(name, "paper")
    if (local := local_method(name)) is not None:
        return NetMethod(name, "ours", special=local)
    if name.partition(":")[0] == ADAM_ROWS:
        rows = parse_spec("methods", name, {ADAM_ROWS: Rows})
        parse_policy(rows.collective)
        Wire.parse(rows.wire)
        return NetMethod(name, "ours", collective=rows.collective, special=rows)
    compressor, _, rest = name.partition("/")
    collective, _, wire = rest.partition("/")
    try:
        parse_compressor(compressor)
    except ValueError as error:
        known = ", ".join((DDP, *HOOKS, POWERSGD, *PAPER, ADAM_ROWS, *LOCAL_METHODS))
        raise ValueError(f"methods must be {known}, or compressor/collective/wire of ours: {error}") from None
    method = NetMethod(name, "ours", compressor, collective or "allgather", wire or None)
    parse_policy(method.collective)
    if method.wire:
        Wire.parse(method.wire)
    return method
