"""A fragment: parameters that take their turn together, and their round, from the difference to the agreed weights."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import Parameter

from gaussiank.comm import Done
from gaussiank.layout import Layout
from gaussiank.metrics import Metrics
from gaussiank.ops import all_finite, prepare
from gaussiank.reducer import GradientReducer, Settings

from .notes import digest
from .vector import by_name, flat_of, vectors_of

_COUNTED = ("step", "density", "numel", "k", "kept", "sent_bytes", "dense_bytes")  # of a round, for one that resumes


@dataclass
class Flight:
    """A round under way.

    Args:
        began: inner step at which it began.
        means: ``[numel]`` differences, one a vector, that become their means.
        under_way: futures of the means, none once they have arrived.
        before: ``[numel]`` local weights when it began, one a vector; none where nothing is carried over.
        note: future of what every worker told of it, or None once that was read.
        clock: when it began and what of it this worker has waited for, in seconds; None where it was resumed.
    """

    began: int
    means: list[Tensor]
    under_way: list[Done]
    before: list[Tensor]
    note: Done | None
    clock: Clock | None = None


@dataclass
class Clock:
    """Seconds of a round: when it began, and what training has stood still for it."""

    started: float
    norm: float
    waited_s: float = 0.0


class Round(NamedTuple):
    """A round that has ended, as this worker saw it.

    Attributes:
        fragment: its number.
        began: inner step at which it began.
        sent_bytes: that this worker sent.
        kept: entries that it chose.
        difference_norm: of what it had learnt since the round before; NaN in a round that was resumed.
        round_s: seconds from its beginning to its end; NaN likewise.
        waited_s: those in which training stood still: selection, waiting, applying; the others are overlapped.
    """

    fragment: int
    began: int
    sent_bytes: int
    kept: int
    difference_norm: float
    round_s: float
    waited_s: float


class Fragment:
    """Some parameters with agreed weights and residuals of their own, in at most one round at a time.

    Args:
        parameters: name -> local weights.
        settings: how differences become a mean, the same on every worker.
        group: process group, or None for the default one.
        home: where agreed weights and residuals lie between rounds, None for where the parameters are.
        resting: dtype of the residuals between rounds, None for their own.
        whole: whether density 1 may go by a dense all-reduce, in full precision.

    Attributes:
        vectors: its parameters.
        reducer: selects, exchanges, and keeps the residuals.
        flight: the round under way, or None.
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        settings: Settings,
        *,
        group: dist.ProcessGroup | None,
        home: torch.device | None,
        resting: torch.dtype | None,
        whole: bool,
    ) -> None:
        self.vectors = vectors_of(parameters, home)
        self._home, self._resting, self._whole = home, resting, whole
        numels = {
            name: numel
            for vector in self.vectors
            for name, numel in zip(vector.layout.names, vector.layout.numels, strict=True)
        }
        if not settings.compressor.sends_all:
            prepare({vector.device for vector in self.vectors})
        self.reducer = GradientReducer(numels, settings, group=group, device=self.vectors[0].device)
        self.flight: Flight | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Names of its parameters."""
        return tuple(name for vector in self.vectors for name in vector.layout.names)

    @property
    def metrics(self) -> Metrics:
        """Measurements of its last round."""
        return self.reducer.measured

    def differences(self) -> list[Tensor]:
        """Return what was learnt since the last round, one vector each, as agreed less local weights."""
        return [vector.difference() for vector in self.vectors]

    def send(
        self, step: int, differences: Sequence[Tensor], note: Done | None, *, carrying: bool, left_out: bool
    ) -> None:
        """Begin a round: select from residual and difference, keep the rest, start the exchange.

        Args:
            step: inner step.
            differences: of each vector; become the means.
            note: what every worker tells of it.
            carrying: what is learnt before the round ends will be put on top of it.
            left_out: give nothing; the residual stays.
        """
        reducer = self.reducer
        # before the differences are overwritten by the means
        before = [vector.local() for vector in self.vectors] if carrying else []
        under_way = []
        reducer.begin()
        for vector, difference in zip(self.vectors, differences, strict=True):
            under_way.append(self._start(vector.layout, difference, left_out=left_out))
        reducer.seal()
        self.flight = Flight(step, list(differences), under_way, before, note)

    def _start(self, layout: Layout, difference: Tensor, *, left_out: bool) -> Done:
        held = [slice(0, difference.numel())] if left_out else []
        if left_out:
            difference.zero_()
        if not ((self._whole or self.reducer.whole) and self.reducer.dense):
            return self.reducer.reduce_sparse(layout, [difference], held)
        repeated = self.reducer.repeat(lambda: layout, difference)
        return repeated or self.reducer.reduce_dense(lambda: layout, difference, held)

    def digest(self) -> int:
        """Return a hash of the agreed weights."""
        return digest([vector.agreed for vector in self.vectors])

    def arrive(self) -> None:
        """Wait for the means of the round under way, and commit what the residuals have kept.

        Raises:
            RuntimeError: a worker is gone, or a mean is not finite.
        """
        flight = self.flight
        if flight is None or not flight.under_way:
            return
        for done in flight.under_way:
            done.wait()
        flight.under_way = []
        self.reducer.feedback.settle()
        if not all(bool(all_finite(mean)) for mean in flight.means):
            raise RuntimeError(
                f"the mean of {self.names[0]} to {self.names[-1]} must be finite, got infinity or NaN in the round of "
                f"step {flight.began}. No residual was changed; set wire to values that do not overflow."
            )
        self.reducer.feedback.rest(self._resting, self._home)

    def drop(self) -> None:
        """Forget the round under way: agreed weights and residuals are as before it."""
        for done in self.flight.under_way if self.flight else ():
            with contextlib.suppress(RuntimeError):  # what ends later would count for the next round
                done.wait()
        self.reducer.discard()
        self.flight = None

    def land(self, agreed: Sequence[Sequence[Parameter]], outer: torch.optim.Optimizer, mixing: float) -> None:
        """End a round whose means have arrived: step the agreed weights, and give them to the local ones.

        Args:
            agreed: the agreed weights of each vector as parameters of the outer optimizer.
            outer: steps the agreed weights against their means.
            mixing: share of its local weights that a worker keeps, where nothing is carried over.
        """
        flight, self.flight = self.flight, None
        assert flight is not None  # begun and arrived
        for vector, parameters, mean in zip(self.vectors, agreed, flight.means, strict=True):
            grads = vector.views(mean.to(vector.agreed.device))
            for parameter, grad in zip(parameters, grads, strict=True):
                parameter.grad = grad
        outer.step()
        outer.zero_grad()  # sets them to None
        for number, vector in enumerate(self.vectors):
            if flight.before:
                vector.carry(flight.before[number])
            elif mixing:
                vector.mix(mixing)
            else:
                vector.write()

    def state_dict(self) -> dict[str, Any]:
        """Return copies of its weights, residuals and round under way, whose means have arrived."""
        flight = self.flight
        return {
            **self.reducer.state_dict(),
            "agreed": by_name(self.vectors, [vector.agreed for vector in self.vectors]),
            "local": by_name(self.vectors, [vector.local() for vector in self.vectors]),
            "flight": flight
            and {
                "began": flight.began,
                "means": by_name(self.vectors, flight.means),
                "before": by_name(self.vectors, flight.before),
                "measured": {name: getattr(self.metrics, name) for name in _COUNTED},
            },
        }

    def require_fitting(self, state: Mapping[str, Any]) -> None:
        """Raise what ``load_state_dict`` would, and change nothing.

        Raises:
            ValueError: the first thing that does not fit.
        """
        self.reducer.require_fitting(state)
        flight = state["flight"]
        for vector in self.vectors:
            for name, numel in zip(vector.layout.names, vector.layout.numels, strict=True):
                saved = [state["agreed"], state["local"]]
                saved += [one for one in (flight["means"], flight["before"]) if one] if flight else []
                if any(not isinstance(one[name], Tensor) or one[name].shape != (numel,) for one in saved):
                    raise ValueError(
                        f"state of {name} must be vectors of {numel} entries. Load the state of this model."
                    )

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where ``state_dict`` was taken."""
        self.reducer.load_state_dict(state)
        self.reducer.feedback.rest(self._resting, self._home)
        for vector in self.vectors:
            vector.load(state["agreed"], state["local"])
        self.flight = None
        if flight := state["flight"]:
            means = [flat_of(vector, flight["means"]) for vector in self.vectors]
            before = [flat_of(vector, flight["before"]) for vector in self.vectors] if flight["before"] else []
            self.flight = Flight(flight["began"], means, [], before, None)
            self.reducer.measured = Metrics(**flight["measured"])

    def rewind(self) -> None:
        """Overwrite the local weights by the agreed ones, as if nothing had been learnt since."""
        for vector in self.vectors:
            vector.write()
        if self.flight is not None and self.flight.before:
            self.flight.before = [vector.local() for vector in self.vectors]
