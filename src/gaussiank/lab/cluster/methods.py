"""The methods that are compared: two dense ones, today's default, and what can be changed about it."""

from __future__ import annotations

from dataclasses import replace

from gaussiank.sim import Method

from .wires import WIRES

DENSE = Method("dense fp32", "dense")
DENSE_16 = Method("dense bf16", "dense", value_bytes=2)
DEFAULT_NAME = "topk"
"""What ``gaussiank.compress(model)`` does when nothing else is said."""


def compact_wire(*, accelerator: bool) -> str:
    """Return the name of the smallest wire that is packed where the gradients are."""
    return "chunks+bf16" if accelerator else "rice+bf16"


def default_method(density: float) -> Method:
    """Return today's default: exact Top_k of each bucket, entries as they are, all-gather."""
    return Method(DEFAULT_NAME, "topk", density)


def all_methods(density: float, *, accelerator: bool) -> tuple[Method, ...]:
    """Return the methods of the table of ``gaussiank simulate``."""
    topk = default_method(density)
    wire = WIRES[compact_wire(accelerator=accelerator)]
    compact = replace(topk, name=f"topk {wire.name}", wire=wire)
    names = {"split": "split", "tree": "tree", "leader": "leader", "hierarchical": "hierarchical"}
    return (
        DENSE,
        DENSE_16,
        topk,
        compact,
        *(replace(compact, name=f"topk {name}", collective=key) for key, name in names.items()),
        Method("gaussiank", "gaussiank", density, room=4 / 3),  # the top of its band
        Method("dgc", "dgc", density),
        Method("trimmedtopk", "trimmedtopk", density),
    )
