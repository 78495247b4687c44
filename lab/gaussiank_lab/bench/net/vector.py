"""The exchange alone: a random gradient of a given length, without model, backward or DDP."""

from __future__ import annotations

import time

import torch
import torch.distributed as dist
from torch import Tensor

from gaussiank.autotune import parse_policy
from gaussiank.codec import chosen_wire
from gaussiank.comm import ring_bytes
from gaussiank.compressors import parse_compressor
from gaussiank.layout import Layout
from gaussiank.reducer import GradientReducer, Settings
from gaussiank.schedule import Constant

from .carriers import TIMEOUT_S, Spent
from .methods import DDP, PAPER, NetMethod
from .paper import PaperExchange

_NARROW = {"ddp-fp16": torch.float16, "ddp-bf16": torch.bfloat16}


class VectorCarrier:
    """Exchange one vector a step, from gradient to mean; a fresh gradient is drawn before the clock runs.

    Args:
        method: the way, but neither PowerSGD, which needs matrices, nor none at all.
        numel: entries.
        density: share of entries to send.
    """

    def __init__(self, method: NetMethod, numel: int, density: float) -> None:
        self.numel = numel
        self._method, self._density = method, density
        self._random = torch.Generator().manual_seed(dist.get_rank())
        self._grad = torch.empty(numel)
        self._layout = Layout(("vector",), (numel,))
        self._reducer: GradientReducer | None = None
        self._paper = PaperExchange(PAPER[method.name], density) if method.family == "paper" else None
        self._spent = Spent(None, None, None, 0, 0, dense=True)

    def attach(self) -> None:
        """Set up what may measure the link."""
        if self._method.family == "ours":
            self._reducer = GradientReducer(
                {"vector": self.numel},
                Settings(
                    Constant(self._density),
                    parse_compressor(self._method.compressor),
                    collective=parse_policy(self._method.collective),
                    wire=chosen_wire(self._method.wire, [self._grad]),
                    timeout_s=TIMEOUT_S,
                ),
            )

    def step(self) -> float:
        """Exchange a vector; returns the seconds."""
        self._grad.normal_(generator=self._random)
        dist.barrier()  # drawing takes longer than a sparse exchange
        began = time.perf_counter()
        if self._reducer is not None:
            self._compressed(self._reducer)
        elif self._paper is not None:
            self._paper.reduce([self._grad])
        else:
            self._dense(self._grad)
        taken_s = time.perf_counter() - began
        self._note(taken_s)
        return taken_s

    def spent(self) -> Spent:
        """Return what the last step took."""
        return self._spent

    def _compressed(self, reducer: GradientReducer) -> None:
        reducer.begin()
        if reducer.dense:
            done = reducer.reduce_dense(lambda: self._layout, self._grad)
        else:
            done = reducer.reduce_sparse(self._layout, [self._grad])
        reducer.seal()
        done.wait()

    def _dense(self, grad: Tensor) -> None:
        """Do what DDP and its hooks do with a bucket."""
        grad.div_(dist.get_world_size())
        if self._method.name == DDP:
            dist.all_reduce(grad)
            return
        narrow = grad.to(_NARROW[self._method.name])
        dist.all_reduce(narrow)
        grad.copy_(narrow)

    def _note(self, taken_s: float) -> None:
        found = self._paper or (self._reducer.measured if self._reducer else None)
        if found is not None:
            self._spent = Spent(
                found.select_s, found.exchange_s, found.finish_s, found.sent_bytes, found.kept,
                dense=found.kept == self.numel,
            )  # fmt: skip
            return
        sent = self._grad.to("meta", _NARROW.get(self._method.name, torch.float32))
        self._spent = Spent(None, taken_s, None, ring_bytes(sent, dist.get_world_size()), self.numel, dense=True)
