"""The ways to exchange that the network benchmark knows, read from text."""

from __future__ import annotations

from dataclasses import dataclass

from gaussiank.autotune import parse_policy
from gaussiank.codec import Wire
from gaussiank.compressors import parse_compressor

DDP = "ddp"
HOOKS = ("ddp-fp16", "ddp-bf16", "ddp-powersgd")
PAPER = {"paper-topk": "torch.topk", "paper-dgc": "published DGC", "paper-gaussiank": "published Gaussian_k"}
"""Name -> rule among the benchmark's peers."""

ALONE = "alone"
"""No exchange at all: what the others are compared with to tell computing from waiting."""


@dataclass(frozen=True)
class NetMethod:
    """A way to exchange gradients.

    Attributes:
        name: as the user wrote it.
        family: ``ddp``, ``ours``, ``paper``, or ``alone``.
        compressor: of ours.
        collective: of ours.
        wire: of ours, or None for its default.
    """

    name: str
    family: str
    compressor: str = ""
    collective: str = "allgather"
    wire: str | None = None

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
    """
    name = text.strip()
    if name == ALONE:
        return NetMethod(name, "alone")
    if name in (DDP, *HOOKS):
        return NetMethod(name, "ddp")
    if name in PAPER:
        return NetMethod(name, "paper")
    compressor, _, rest = name.partition("/")
    collective, _, wire = rest.partition("/")
    try:
        parse_compressor(compressor)
    except ValueError as error:
        known = ", ".join((DDP, *HOOKS, *PAPER))
        raise ValueError(f"methods must be {known}, or compressor/collective/wire of ours: {error}") from None
    method = NetMethod(name, "ours", compressor, collective or "allgather", wire or None)
    parse_policy(method.collective)
    if method.wire:
        Wire.parse(method.wire)
    return method
