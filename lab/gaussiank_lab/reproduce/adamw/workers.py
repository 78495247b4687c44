"""Workers that train a small transformer in one process: the text, the model for all of them at once, gradients.

All workers' forwards are one: every weight has a worker as its first dimension, so that each product of matrices is a
batch of them and a step costs the calls of one worker. Weights that all workers share are one row, expanded.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor
from torch.nn import functional

from gaussiank.layout import Layout
from gaussiank_lab.data.source import Wanted
from gaussiank_lab.data.text import STDLIB
from gaussiank_lab.models.text import Transformer, turned
from gaussiank_lab.reproduce.adamw.setting import Size

VOCABULARY = 256


@functools.cache
def text(context: int) -> tuple[Tensor, Tensor, str]:
    """Return training and test bytes of Python's own standard library, and their digest."""
    data = STDLIB.load(Wanted(context=context))
    return data.train.tokens, data.test.tokens, data.digest  # type: ignore[attr-defined]  # both are TokenSets


class Workers:
    """Hold the weights of P workers, deal them text, and compute their gradients.

    Vectors hold the parameters in the order in which their gradients are ready, that of DDP's buckets: the last module
    first.

    Args:
        size: of the model.
        workers: P.
        batch: examples of a worker and step.
        seed: of weights and data; the same data for every method.
        own: whether each worker has weights of its own, or all share one row.

    Attributes:
        names: of the parameters in the module's own order.
        layout: which parameter lies where.
        shapes: name -> shape.
        weights: ``[P, numel]``, or ``[1, numel]`` when shared. Change it in place.
    """

    def __init__(self, size: Size, workers: int, batch: int, seed: int, *, own: bool) -> None:
        self.size, self.workers, self._batch = size, workers, batch
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = Transformer(VOCABULARY, size.width, size.layers, size.heads)
        ready = [
            (name, model.get_parameter(name))
            for place, module in reversed(list(model.named_modules()))
            for name in (f"{place}.{own}".strip(".") for own, _ in module.named_parameters(recurse=False))
        ]
        named = dict(ready)
        self.names = tuple(name for name, _ in model.named_parameters())
        self.shapes = {name: tuple(parameter.shape) for name, parameter in named.items()}
        self.layout = Layout(tuple(named), tuple(parameter.numel() for parameter in named.values()))
        flat = torch.cat([parameter.detach().flatten() for parameter in named.values()])
        self.weights = flat.repeat(workers if own else 1, 1)
        self._train, self._test, self.digest = text(size.context)
        self._generators = [torch.Generator().manual_seed(1000 * seed + rank + 1) for rank in range(workers)]
        self._leaves = self._leaves_of(self.weights.expand(workers, -1))
        self._grads = torch.empty(workers, flat.numel())
        self._grad_views = self.views(self._grads)

    def gradients(self) -> tuple[Tensor, Tensor]:
        """Return each worker's gradient of the next batch, ``[P, numel]``, and its loss, ``[P]``.

        The gradient's memory is used again at the next call.
        """
        tokens = torch.stack([self._windows(generator) for generator in self._generators])
        losses = self._losses(self._leaves, tokens)
        found = torch.autograd.grad(losses.sum(), list(self._leaves.values()))
        for place, grad in zip(self._grad_views.values(), found, strict=True):
            place.copy_(grad)
        return self._grads, losses.detach()

    @torch.no_grad()
    def evaluate(self, weights: Tensor, share: float = 1.0) -> float:
        """Return the nats a byte of the test text under some weights, ``[numel]``.

        Args:
            weights: of one model.
            share: of the test text that is read.
        """
        context = self.size.context
        windows = int((len(self._test) - 1) // context * share)
        places = torch.arange(windows)[:, None] * context + torch.arange(context + 1)
        leaves = self._leaves_of(weights[None])
        parts = [self._losses(leaves, self._test[part].long()[None]) * len(part) for part in places.split(256)]
        return float(torch.cat(parts).sum() / windows)

    def _windows(self, generator: torch.Generator) -> Tensor:
        context = self.size.context
        starts = torch.randint(len(self._train) - context, (self._batch, 1), generator=generator)
        return self._train[starts + torch.arange(context + 1)].long()

    def views(self, vectors: Tensor) -> dict[str, Tensor]:
        """View vectors ``[P, numel]`` parameter by parameter, each ``[P, ...]``."""
        return {name: vectors[:, place].unflatten(1, self.shapes[name]) for name, place in self.layout.slices()}

    def _leaves_of(self, weights: Tensor) -> dict[str, Tensor]:
        return {name: view.detach().requires_grad_() for name, view in self.views(weights).items()}

    def _losses(self, weights: dict[str, Tensor], tokens: Tensor) -> Tensor:
        """Return each worker's mean loss of its tokens, int64 ``[P, b, context + 1]``: the lab's transformer."""
        workers, b, _ = tokens.shape
        inputs, targets = tokens[:, :, :-1], tokens[:, :, 1:]
        offsets = VOCABULARY * torch.arange(workers)[:, None, None]
        table = weights["embedding.weight"].reshape(workers * VOCABULARY, self.size.width)
        states = functional.embedding(inputs + offsets, table).view(workers, -1, self.size.width)
        turns = _turns(inputs.shape[2], self.size.width // self.size.heads // 2)
        for number in range(self.size.layers):
            layer = f"layers.{number}."
            inner = _normal(states, weights, layer + "attention_norm")
            mixed = self._attention(_linear(inner, weights[layer + "attention_in.weight"]), turns, b)
            states = states + _linear(mixed, weights[layer + "attention_out.weight"])
            inner = _normal(states, weights, layer + "feed_forward.0")
            inner = functional.gelu(_linear(inner, weights[layer + "feed_forward.1.weight"]))
            states = states + _linear(inner, weights[layer + "feed_forward.3.weight"])
        scores = _linear(_normal(states, weights, "norm"), weights["head.weight"])
        losses = functional.cross_entropy(scores.flatten(0, 1), targets.flatten(), reduction="none")
        return losses.view(workers, -1).mean(1)

    def _attention(self, projected: Tensor, turns: tuple[Tensor, Tensor], b: int) -> Tensor:
        workers, heads = projected.shape[0], self.size.heads
        split = projected.view(workers * b, -1, 3, heads, self.size.width // heads)
        query, key, value = split.permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(turned(query, turns), turned(key, turns), value, is_causal=True)
        return mixed.transpose(1, 2).reshape(workers, -1, self.size.width)


def learning_rate(highest: float, step: int, steps: int) -> float:
    """Return the rate of a step: up over 50, then down by a cosine to a tenth."""
    rise = min(1.0, (step + 1) / 50)
    return highest * rise * (0.1 + 0.45 * (1 + math.cos(math.pi * step / steps)))


def _linear(states: Tensor, weight: Tensor) -> Tensor:
    return torch.bmm(states, weight.transpose(1, 2))


def _normal(states: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    plain = functional.layer_norm(states, (states.shape[-1],))
    return torch.addcmul(weights[name + ".bias"][:, None], plain, weights[name + ".weight"][:, None])


@functools.cache
def _turns(context: int, half: int) -> tuple[Tensor, Tensor]:
    frequencies = 10_000.0 ** (-torch.arange(half) / half)
    angles = torch.outer(torch.arange(context), frequencies)
    return angles.cos(), angles.sin()
