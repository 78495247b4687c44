"""The methods that are compared: two dense ones, today's default, and what can be changed about it."""

from __future__ import annotations

from dataclasses import replace

from gaussiank_lab.sim import Method

from .wires import WIRES

DENSE = Method("dense fp32", "dense")
DENSE_16 = Method("dense bf16", "dense", value_bytes=2)
DEFAULT_NAME = "topk"
"""What ``gaussiank.compress(model)`` does when nothing else is said."""


def compact_wire(*, accelerator: bool) -> str:
    """Return the name of the smallest wire that is packed where the gradients are."""
    return "chunks+bf16" if accelerator else "rice+bf16-rice"


def default_method(density: float, *, accelerator: bool) -> Method:
    """Return today's default: exact Top_k of each bucket, the compact wire, all-gather."""
    return Method(DEFAULT_NAME, "topk", density, WIRES[compact_wire(accelerator=accelerator)])


def all_methods(density: float, *, accelerator: bool) -> tuple[Method, ...]:
    """Return the methods of the table of ``gaussiank simulate``."""
    topk = default_method(density, accelerator=accelerator)
    collectives = ("split", "tree", "leader", "hierarchical")
    return (
        DENSE,
        DENSE_16,
        topk,
        replace(topk, name="topk raw+fp32", wire=WIRES["raw+fp32"]),
        *(replace(topk, name=f"topk {name}", collective=name) for name in collectives),
        Method("gaussiank", "gaussiank", density, topk.wire, room=4 / 3),  # the top of its band
        Method("dgc", "dgc", density, topk.wire),
        Method("trimmedtopk", "trimmedtopk", density, topk.wire),
    )
