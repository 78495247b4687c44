"""One step of each rule of the study: what is exchanged, with the library's own parts, and what the optimizer does."""

from __future__ import annotations

import math
from collections.abc import Container

import torch
from torch import Tensor

from gaussiank import ops
from gaussiank.codec import HEADER_BYTES, Wire
from gaussiank.compressors import parse_compressor
from gaussiank.feedback import ErrorFeedback
from gaussiank.layout import Layout
from gaussiank.local.vector import split
from gaussiank.momentum import LocalClip, MomentumCorrection, limit_norm
from gaussiank.reducer.precondition import decoded, encoded
from gaussiank.reducer.selection import Selector
from gaussiank.schedule import Constant, Schedule, Warmup
from gaussiank.sparse import SparseGradient
from gaussiank_lab.reproduce.adamw.setting import SIZES, By, StudySetting
from gaussiank_lab.reproduce.adamw.workers import Workers, learning_rate

FIRST_BUCKET, BUCKET = 2**20 // 4, 25 * 2**20 // 4  # entries after which DDP closes a bucket
WEIGHT_DECAY, CLIP_NORM = 0.1, 1.0
_FINITE = torch.ones((), dtype=torch.bool)


class SimulatedExchange:
    """Do with the vectors of P workers what ``compress`` does, message for message: take, encode, decode, average.

    Args:
        shapes: of the parameters, in the order in which they lie in the vectors.
        setting: compressor, scope, wire, density, momentum correction.
        layout: of a whole vector.

    Attributes:
        sent_bits: bits of all payloads of a worker so far, mean over workers.
        feedbacks: the residuals of each worker.
    """

    def __init__(self, shapes: dict[str, tuple[int, ...]], setting: StudySetting, layout: Layout) -> None:
        self.wire = Wire.parse(setting.wire)
        self._schedule = schedule_of(setting)
        self._workers = setting.workers
        compressor, per_layer = parse_compressor(setting.compressor), setting.scope == "layer"
        whole = setting.scope == "model" or setting.method == "local"  # local steps know no buckets
        self._buckets = [(slice(0, layout.numel), layout)] if whole else buckets(layout)
        self._selectors = [Selector(compressor, per_layer=per_layer, rank=rank) for rank in range(setting.workers)]
        moves = setting.correction > 0
        momentum = MomentumCorrection(setting.correction, setting.nesterov, setting.masking) if moves else None
        self.feedbacks = [
            ErrorFeedback(shapes, momentum=momentum, world_size=setting.workers) for _ in range(setting.workers)
        ]
        self.sent_bits = 0.0

    def mean(self, vectors: Tensor, step: int) -> Tensor:
        """Return the mean ``[numel]`` of what is sent of vectors ``[P, numel]``, which are not modified."""
        mean, density = torch.empty(vectors.shape[1]), self._schedule(step)
        for place, layout in self._buckets:
            parts = [self._send(rank, layout, vectors[rank, place], density, step) for rank in range(self._workers)]
            ops.scatter_mean(parts, mean[place])
        for feedback in self.feedbacks:
            feedback.seal()
            feedback.settle()
        return mean

    def _send(self, rank: int, layout: Layout, vector: Tensor, density: float, step: int) -> SparseGradient:
        """Return what others decode of one worker's payload; what is not in it stays in the residual."""
        selector, feedback = self._selectors[rank], self.feedbacks[rank]
        sparse = feedback.take(
            layout,
            vector,
            lambda accumulated: selector.select(layout, accumulated, density, step),
            fused=lambda grad, residual, out: selector.take(layout, grad, residual, out, density, step),
        )
        packed = self.wire.pack(sparse)
        if packed.error is not None:
            feedback.put_back(layout, SparseGradient(sparse.indices, packed.error, sparse.numel))
        feedback.record_finite(_FINITE)
        self.sent_bits += 8 * packed.row.numel() / self._workers
        return self.wire.decode(packed.row, layout.numel)


def schedule_of(setting: StudySetting) -> Schedule:
    """Return the density over steps: constant, or down DGC's stages over the first tenth."""
    if not setting.warm:
        return Constant(setting.density)
    stages = len(Warmup.dgc(setting.density, 1).densities) - 1
    return Warmup.dgc(setting.density, max(1, setting.steps // 10 // max(1, stages)))


def buckets(layout: Layout) -> list[tuple[slice, Layout]]:
    """Cut a layout into DDP's buckets: the first closes after 1 MiB, all others after 25 MiB."""
    cut: list[tuple[slice, Layout]] = []
    names: list[str] = []
    numels: list[int] = []
    start = 0
    for name, numel in zip(layout.names, layout.numels, strict=True):
        names.append(name)
        numels.append(numel)
        if sum(numels) >= (BUCKET if cut else FIRST_BUCKET) or name == layout.names[-1]:
            cut.append((slice(start, start + sum(numels)), Layout(tuple(names), tuple(numels))))
            start, names, numels = start + sum(numels), [], []
    return cut


class RulePreconditioner:
    """Divide gradients by the root of their second moment, kept from dense local gradients.

    The second moment of the mean over P workers is estimated by the mean of the workers' squares over P, where noise
    rules. By row, column or block one number stands for the matrix's row, column or all of it; vectors go by entry.

    Args:
        by: what shares one number.
        workers: whose views tell the parameters apart.
        beta2: how long it remembers.
        lagged: whether the step of t uses the state of t-1 and the worker's own square of t.
        coded: whether what workers send of their squares is in the 8 bits of ``AdamRows``, else in float32.

    Attributes:
        sums: numbers that a worker sends at a step, beside its payloads.
    """

    def __init__(self, by: By, workers: Workers, beta2: float, *, lagged: bool, coded: bool = False) -> None:
        self._by, self._views, self._beta2, self._lagged, self._coded = by, workers.views, beta2, lagged, coded
        zeros = workers.views(torch.zeros(1, workers.layout.numel))
        self._moments = {name: self._square(name, view) for name, view in zeros.items()}
        self.sums = sum(moment.numel() for moment in self._moments.values())
        self._steps = 0

    def divide(self, grads: Tensor) -> None:
        """Divide the workers' gradients ``[P, numel]``, in place."""
        self._steps += 1
        workers, beta2 = grads.shape[0], self._beta2
        known = 1 - beta2**self._steps
        views = self._views(grads)
        squares = {name: self._square(name, grad).div_(workers) for name, grad in views.items()}
        sent = self._rounded(squares) if self._coded else squares
        for name, grad in views.items():
            before = self._moments[name] * beta2
            self._moments[name] = before.add(sent[name].mean(0, keepdim=True), alpha=1 - beta2)
            used = before + (1 - beta2) * squares[name] if self._lagged else self._moments[name]
            grad.div_((used / known).sqrt_().add_(1e-8))

    def _rounded(self, squares: dict[str, Tensor]) -> dict[str, Tensor]:
        """Round each worker's squares as they travel in its one message."""
        flat = torch.cat([square.flatten(1) for square in squares.values()], dim=1)
        arrived = torch.stack([decoded(encoded(own)) for own in flat])
        parts = arrived.split([square[0].numel() for square in squares.values()], dim=1)
        return {name: part.view_as(square) for (name, square), part in zip(squares.items(), parts, strict=True)}

    def _square(self, name: str, grad: Tensor) -> Tensor:
        square = grad.square()
        if self._by == "entry" or grad.dim() < 3:
            return square
        inputs = (1,) if name.startswith("layers.") else (2,)
        dims = {"row": (2,), "column": (1,), "inputs": inputs, "block": (1, 2)}[self._by]
        return square.mean(dims, keepdim=True)


class Adam:
    """AdamW on one vector, or on one of each worker; its second moment can be frozen (1-bit Adam).

    Args:
        weights: changed in place.
        setting: betas.
    """

    def __init__(self, weights: Tensor, setting: StudySetting) -> None:
        self._parameter = torch.nn.Parameter(weights)
        assert self._parameter.data_ptr() == weights.data_ptr()
        self._betas = (setting.beta1, setting.beta2)
        self._optimizer = torch.optim.AdamW(
            [self._parameter], lr=setting.lr, betas=self._betas, weight_decay=WEIGHT_DECAY
        )

    def step(self, grad: Tensor, lr: float, *, frozen: bool = False) -> None:
        """Take one step."""
        if frozen:
            self._step_frozen(grad, lr)
            return
        self._optimizer.param_groups[0]["lr"] = lr
        self._parameter.grad = grad.view_as(self._parameter)
        self._optimizer.step()

    @torch.no_grad()
    def _step_frozen(self, grad: Tensor, lr: float) -> None:
        state, (beta1, beta2) = self._optimizer.state[self._parameter], self._betas
        state["exp_avg"].lerp_(grad.view_as(self._parameter), 1 - beta1)
        root = (state["exp_avg_sq"] / (1 - beta2 ** float(state["step"]))).sqrt_().add_(1e-8)
        self._parameter.mul_(1 - lr * WEIGHT_DECAY).addcdiv_(state["exp_avg"], root, value=-lr)


class Run:
    """Train by one rule, step after step.

    Args:
        setting: all of it.

    Attributes:
        workers: with their weights.
        messages: exchanges so far.
    """

    def __init__(self, setting: StudySetting) -> None:
        self.setting = setting
        self.workers = self._make_workers(own=False)
        self.messages = 0
        self.dense_bits = 0.0

    def _make_workers(self, *, own: bool) -> Workers:
        s = self.setting
        return Workers(SIZES[s.model], s.workers, s.batch, s.seed, own=own)

    @property
    def numel(self) -> int:
        """Parameters of the model."""
        return self.workers.layout.numel

    @property
    def sent_bits(self) -> float:
        """Bits of the payloads of a worker so far."""
        return self.dense_bits

    @property
    def sum_bits(self) -> float:
        """Bits of a preconditioner's sums so far, at 32 each."""
        return 0.0

    @property
    def weights(self) -> Tensor:
        """Those of the model that is judged, ``[numel]``."""
        return self.workers.weights[0]

    def rate(self, step: int) -> float:
        """Return the learning rate of a step."""
        return learning_rate(self.setting.lr, step, self.setting.steps)

    def step(self, step: int) -> float:
        """Take a step; returns the mean loss of the workers before it."""
        grads, losses = self.workers.gradients()
        self.update(grads, step)
        return float(losses.mean())

    def update(self, grads: Tensor, step: int) -> None:
        """Change the weights by the workers' gradients ``[P, numel]``, whose memory is free to use."""
        raise NotImplementedError

    def clip_local(self, grads: Tensor) -> None:
        """Clip each worker's gradient, if asked to, as ``compress(clip_norm=)`` does."""
        if self.setting.clip != "local":
            return
        layout = self.workers.layout
        per_layer = self.setting.scope == "layer"
        cut = buckets(layout) if self.setting.scope == "bucket" else [(slice(0, layout.numel), layout)]
        clip = LocalClip(CLIP_NORM, len(layout.names), per_layer=per_layer)
        for grad in grads:
            for place, part in cut:
                clip.apply(part, [grad[place]])

    def clip_mean(self, mean: Tensor) -> None:
        """Clip the mean, if asked to."""
        if self.setting.clip == "mean":
            limit_norm([mean], CLIP_NORM)


class DenseRun(Run):
    """AdamW on the mean of whole gradients, in float32 or bfloat16."""

    def __init__(self, setting: StudySetting) -> None:
        super().__init__(setting)
        self._adam = Adam(self.workers.weights, setting)

    def update(self, grads: Tensor, step: int) -> None:
        """Average and step."""
        self.clip_local(grads)
        half = self.setting.method == "bf16"
        mean = grads.bfloat16().float().mean(0).bfloat16().float() if half else grads.mean(0)
        self.dense_bits += (16 if half else 32) * self.numel
        self.messages += 1
        self.clip_mean(mean)
        self._adam.step(mean, self.rate(step))


class SparseRun(Run):
    """A sparse exchange at every step, then AdamW; or preconditioned gradients, then plain SGD."""

    def __init__(self, setting: StudySetting) -> None:
        super().__init__(setting)
        if setting.lookahead:
            self.workers = self._make_workers(own=True)
        self._shared = self.workers.weights[:1].clone() if setting.lookahead else self.workers.weights
        self._exchange = SimulatedExchange(self.workers.shapes, setting, self.workers.layout)
        self._divisor = (
            RulePreconditioner(
                setting.precondition,
                self.workers,
                setting.beta2,
                lagged=setting.lagged,
                coded=setting.sums == "8bit",
            )
            if setting.precondition
            else None
        )
        self._adam = Adam(self._shared, setting)
        self._arrived = torch.zeros(self.numel)  # momentum after the exchange, of preconditioned gradients

    @property
    def weights(self) -> Tensor:
        """The shared ones."""
        return self._shared[0]

    @property
    def sent_bits(self) -> float:
        """Payloads, and the dense steps before a freeze."""
        return self._exchange.sent_bits + self.dense_bits

    @property
    def sum_bits(self) -> float:
        """One number for each sum and step."""
        width = 8.0 if self.setting.sums == "8bit" else 32.0
        return width * self._divisor.sums * self.messages if self._divisor else 0.0

    def step(self, step: int) -> float:
        """Take a step; with ``lookahead`` each worker's gradient is that of its own weights."""
        if self.setting.lookahead:
            self.workers.weights.copy_(self._shared.expand_as(self.workers.weights))
            for own, feedback in zip(self.workers.weights, self._exchange.feedbacks, strict=True):
                residual = feedback.residuals(self.workers.layout)
                own.sub_(residual, alpha=self.rate(step) * self.setting.lookahead)
        return super().step(step)

    def update(self, grads: Tensor, step: int) -> None:
        """Precondition, exchange, step."""
        setting, lr = self.setting, self.rate(step)
        self.clip_local(grads)
        if self._divisor:
            self._divisor.divide(grads)
        self.messages += 1
        start = round(setting.frozen * setting.steps)
        if step < start:
            mean = grads.mean(0)
            self.dense_bits += 32 * self.numel
        else:
            mean = self._exchange.mean(grads, step)
        self.clip_mean(mean)
        if not self._divisor:
            self._adam.step(mean, lr, frozen=bool(setting.frozen) and step >= start)
            return
        mean *= 1 - setting.correction
        self._arrived.mul_(setting.beta1).add_(mean, alpha=1 - setting.beta1)
        self._shared.mul_(1 - lr * WEIGHT_DECAY).sub_(self._arrived, alpha=lr)


class DeMoRun(Run):
    """DeMo's rule without its cosine transform: a slow momentum gives off its largest entries; the mean's sign counts.

    Source: Peng, Quesnelle and Kingma 2024, "DeMo: Decoupled Momentum Optimization", algorithm 1.
    """

    def __init__(self, setting: StudySetting) -> None:
        super().__init__(setting)
        self._exchange = SimulatedExchange(self.workers.shapes, setting, self.workers.layout)

    @property
    def sent_bits(self) -> float:
        """Payloads."""
        return self._exchange.sent_bits

    def update(self, grads: Tensor, step: int) -> None:
        """Let the momentum fade, exchange, step."""
        lr = self.rate(step)
        self.clip_local(grads)
        self.messages += 1
        for feedback in self._exchange.feedbacks:
            feedback.rescale(self.setting.decay)
        mean = self._exchange.mean(grads.mul_(lr), step)
        self.workers.weights.mul_(1 - lr * WEIGHT_DECAY).sub_(mean.sign(), alpha=lr)


class PowerRun(Run):
    """PowerSGD with feedback: each matrix as a product of two thin ones; vectors whole; then AdamW.

    Source: Vogels et al. 2019, "PowerSGD: Practical Low-Rank Gradient Compression", algorithm 1.
    """

    def __init__(self, setting: StudySetting) -> None:
        super().__init__(setting)
        self._adam = Adam(self.workers.weights, setting)
        self._errors = torch.zeros(setting.workers, self.numel)
        draw = torch.Generator().manual_seed(setting.seed)
        matrices = {name: shape for name, shape in self.workers.shapes.items() if len(shape) == 2}
        self._seconds = {
            name: torch.randn(shape[1], min(setting.rank, *shape), generator=draw) for name, shape in matrices.items()
        }

    def update(self, grads: Tensor, step: int) -> None:
        """One round of the power method on what every worker has."""
        self.clip_local(grads)
        self._errors += grads
        mean = torch.empty(1, self.numel)
        for (name, one), (_, errors) in zip(
            self.workers.views(mean).items(), self.workers.views(self._errors).items(), strict=True
        ):
            if name in self._seconds:
                first = torch.linalg.qr((errors @ self._seconds[name]).mean(0)).Q
                second = (errors.transpose(1, 2) @ first).mean(0)
                one.copy_((first @ second.T)[None])
                self._seconds[name] = second
                self.dense_bits += 32 * (first.numel() + second.numel())
            else:
                one.copy_(errors.mean(0, keepdim=True))
                self.dense_bits += 32 * one.numel()
        self._errors -= mean
        for name, errors in self.workers.views(self._errors).items():
            if name not in self._seconds:
                errors.zero_()
        self.messages += 1
        self.clip_mean(mean[0])
        self._adam.step(mean[0], self.rate(step))


class LocalRun(Run):
    """Inner AdamW steps of each worker alone; every so many the difference is exchanged, and an outer SGD takes it.

    Source: Douillard et al. 2023, "DiLoCo"; Sarfi et al. 2025, "Communication Efficient LLM Pre-training with
    SparseLoCo" (chunks, 2 bits, feedback that fades); Douillard et al. 2025, "Streaming DiLoCo" (fragments, delay).
    """

    def __init__(self, setting: StudySetting) -> None:
        super().__init__(setting)
        self.workers = self._make_workers(own=True)
        self._agreed = self.workers.weights[0].clone()
        self._adam = Adam(self.workers.weights, setting)
        views = self.workers.views(self.workers.weights[:1])
        parts = split({name: views[name] for name in self.workers.names}, setting.fragments)
        self._fragments = [LocalFragment(part, self.workers, self._agreed, setting) for part in parts]

    @property
    def weights(self) -> Tensor:
        """The agreed ones."""
        return self._agreed

    @property
    def sent_bits(self) -> float:
        """Payloads."""
        return sum(fragment.sent_bits for fragment in self._fragments)

    def update(self, grads: Tensor, step: int) -> None:
        """Take an inner step, end the rounds whose means arrive, and begin those whose turn it is.

        The last step ends every round, and one more of each fragment.
        """
        setting, last = self.setting, step + 1 == self.setting.steps
        if setting.clip == "local":
            for grad in grads:
                limit_norm([grad], CLIP_NORM)
        self._adam.step(grads, self.rate(step))
        self._land(step if last else step - setting.sync_delay)
        for number, fragment in enumerate(self._fragments):
            turn = (number + 1) * setting.sync_every // setting.fragments
            if last or (step + 1 - turn) % setting.sync_every == 0:
                fragment.begin(step)
                self.messages += 1
        self._land(step if last else step - setting.sync_delay)

    def _land(self, began: int) -> None:
        for fragment in self._fragments:
            if fragment.began is not None and fragment.began <= began:
                fragment.land()


class LocalFragment:
    """Some parameters of all workers, their agreed weights and residuals, and the round that is under way.

    Args:
        names: of its parameters.
        workers: whose local weights are changed in place.
        agreed: ``[numel]`` of the whole model, changed in place.
        setting: how a round goes.

    Attributes:
        began: step at which the round under way began, or None.
        sent_bits: bits of the payloads of a worker so far.
    """

    def __init__(self, names: Container[str], workers: Workers, agreed: Tensor, setting: StudySetting) -> None:
        self._setting, self._local, self._agreed = setting, workers.weights, agreed
        places = {name: place for name, place in workers.layout.slices() if name in names}
        shapes = {name: workers.shapes[name] for name in places}
        self._layout = Layout(tuple(shapes), tuple(math.prod(shape) for shape in shapes.values()))
        self._place = torch.cat([torch.arange(place.start, place.stop) for place in places.values()])
        self._started = self._local[:, self._place]  # where each worker's round began
        self._outer_parameter = torch.nn.Parameter(agreed[self._place])
        momentum = setting.outer_momentum
        self._outer = torch.optim.SGD(
            [self._outer_parameter], lr=setting.outer_lr, momentum=momentum, nesterov=momentum > 0
        )
        dense = setting.wire.split("+")[0] == "dense"
        self._exchange = None if dense else SimulatedExchange(shapes, setting, self._layout)
        self._mean, self._before = torch.empty(0), torch.empty(0)
        self._rounds, self._dense_bits = 0, 0.0
        self.began: int | None = None

    @property
    def sent_bits(self) -> float:
        """Payloads."""
        return self._exchange.sent_bits if self._exchange else self._dense_bits

    @torch.no_grad()
    def begin(self, step: int) -> None:
        """Send what each worker has learnt since the last round."""
        self._before = self._local[:, self._place]
        difference = self._started - self._before
        if self._exchange is None:
            self._mean = self._rounded(difference).mean(0)
        else:
            for feedback in self._exchange.feedbacks:
                feedback.rescale(self._setting.decay)
            self._mean = self._exchange.mean(difference, self._rounds)
        self.began, self._rounds = step, self._rounds + 1

    @torch.no_grad()
    def land(self) -> None:
        """Step the agreed weights, and give them to every worker with what it has learnt in between."""
        self._outer_parameter.grad = self._mean
        self._outer.step()
        agreed, mixing = self._outer_parameter.detach(), self._setting.mixing
        self._agreed[self._place] = agreed
        now = self._local[:, self._place]
        kept = now - self._before if mixing is None else mixing * (now - agreed)
        self._started = agreed.expand_as(now).clone()
        self._local[:, self._place] = agreed + kept
        if self._exchange is not None and self._setting.lookahead:
            for rank, feedback in enumerate(self._exchange.feedbacks):
                ahead = feedback.residuals(self._layout).mul(self._setting.lookahead)
                self._started[rank] -= ahead
                self._local[rank, self._place] -= ahead
        self.began = None

    def _rounded(self, vectors: Tensor) -> Tensor:
        """Return whole differences as the wire carries their values, without feedback; indices cost nothing."""
        numel = self._layout.numel
        if self._setting.wire == "dense":
            self._dense_bits += 32 * numel
            return vectors
        wire = Wire("raw", self._setting.wire.split("+")[1])
        most = wire.max_bytes(numel, numel)
        indices = Wire("raw", "fp32").max_bytes(numel, numel) - HEADER_BYTES - 4 * numel
        self._dense_bits += 8 * (most - indices)
        return torch.stack([wire.round(vector) for vector in vectors])


RUNS: dict[str, type[Run]] = {
    "dense": DenseRun,
    "bf16": DenseRun,
    "sparse": SparseRun,
    "powersgd": PowerRun,
    "local": LocalRun,
    "demo": DeMoRun,
}
"""Method -> rule."""
