"""How the first backward of a resume gets the buckets of the run that saved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

# torch.distributed shows them at run time only, not to type checkers
from torch._C._distributed_c10d import _DEFAULT_FIRST_BUCKET_BYTES, _compute_bucket_assignment_by_size
from torch.nn import Parameter
from torch.nn.parallel import DistributedDataParallel

from gaussiank.comm import AnyFuture, Done, Promise, then
from gaussiank.layout import Layout

Names = tuple[str, ...]

BACKWARDS = 3  # after which DDP builds its buckets no more: with static_graph it does so before the third


class FlatBucket(Protocol):
    """What is asked of DDP's ``GradBucket``."""

    def parameters(self) -> list[Tensor]:
        """Return the parameters that it is made of, in order."""
        ...

    def buffer(self) -> Tensor:
        """Return their gradients, end to end: ``[numel]``."""
        ...


class _SavedBucket:
    """A bucket that DDP has not built yet: a copy of the gradients that will lie in it."""

    def __init__(self, parameters: list[Tensor], grad: Tensor) -> None:
        self._parameters, self._grad = parameters, grad

    def parameters(self) -> list[Tensor]:
        """Return the parameters that it is made of, in order."""
        return self._parameters

    def buffer(self) -> Tensor:
        """Return their gradients, end to end: ``[numel]``."""
        return self._grad


class SavedBuckets:
    """Make the first exchanges after a load those that the run which saved would have made.

    k is counted on each bucket, and DDP rebuilds its buckets only after its first backward. So a fresh process would
    take its first step on other buckets than the run that it goes on with. Here a bucket that is as saved goes its way
    at once. From the first that is not, all wait for the end of backward; then their gradients are parted as they were
    in the run that saved. The price is the overlap of this one step with its backward.

    Args:
        saved: names of the parameters in each bucket, in the order of the buckets.
    """

    def __init__(self, saved: Sequence[Names]) -> None:
        self.saved = tuple(saved)
        self._backwards = self._begun = 0
        self._held: list[tuple[FlatBucket, Layout, Promise]] = []
        self._places: dict[str, Tensor] = {}  # name -> its part of a bucket that was saved

    def begin(self) -> bool:
        """Begin a backward; returns whether it may need this: the last one's buckets were not yet those saved."""
        needed = not self._backwards or (bool(self._held) and self._backwards < BACKWARDS)
        self._backwards += 1
        self._begun, self._held, self._places = 0, [], {}
        return needed

    def hold(self, bucket: FlatBucket, layout: Layout) -> Done | None:
        """Hold a bucket until all have come; None where it is as saved, as all before it were."""
        if not self._held and self.saved[self._begun : self._begun + 1] == (layout.names,):
            self._begun += 1
            return None
        promise = Promise(bucket.buffer().device)
        self._held.append((bucket, layout, promise))
        return promise.future

    def part(self) -> list[FlatBucket]:
        """Return what is held as the buckets that were saved; as it came, if they are of other parameters."""
        found = {
            name: (bucket.buffer(), place, parameter)
            for bucket, layout, _ in self._held
            for (name, place), parameter in zip(layout.slices(), bucket.parameters(), strict=True)
        }
        wanted = self.saved[self._begun :]
        same = sorted(name for names in wanted for name in names) == sorted(found)
        if not same or any(
            len({(found[name][0].dtype, found[name][0].device) for name in names}) > 1 for names in wanted
        ):
            self._backwards = BACKWARDS
            return [bucket for bucket, _, _ in self._held]
        parted: list[FlatBucket] = []
        for names in wanted:
            pieces = [found[name] for name in names]
            grad = torch.cat([buffer[place] for buffer, place, _ in pieces])
            self._places.update(
                zip(names, grad.split([place.stop - place.start for _, place, _ in pieces]), strict=True)
            )
            parted.append(_SavedBucket([parameter for _, _, parameter in pieces], grad))
        return parted

    def fulfil(self, means: Sequence[Done]) -> None:
        """Hand out the means of what ``part`` returned, once all of them have arrived."""
        held, places = self._held, self._places

        def hand_out(_: AnyFuture) -> None:
            for bucket, layout, promise in held:
                promise.set_from(partial(_collected, bucket.buffer(), layout, places, means))

        then(torch.futures.collect_all(list(means)), hand_out)


def _collected(grad: Tensor, layout: Layout, places: Mapping[str, Tensor], means: Sequence[Done]) -> Tensor:
    """Write to a held bucket's ``grad`` the means of its parameters, or raise what an exchange of them has raised."""
    for mean in means:
        mean.value()
    for name, place in layout.slices():
        if name in places:  # else it was exchanged in place
            grad[place] = places[name]
            if grad.is_cuda:  # the copy runs on the callback's stream, and nobody holds the mean any longer
                places[name].record_stream(torch.cuda.current_stream(grad.device))
    return grad


def next_buckets(model: DistributedDataParallel, arrived: Sequence[tuple[str, Parameter]]) -> list[Names]:
    """Return the buckets that DDP will build after its first backward: by the order in which gradients came.

    Args:
        model: after its first backward, without ``static_graph``.
        arrived: name and parameter, in that order.
    """
    config = getattr(model, "_bucket_config", None)  # not before torch 2.12
    caps = list(getattr(config, "per_bucket_bytes_caps", ())) or [
        getattr(config, "first_bucket_bytes_cap", _DEFAULT_FIRST_BUCKET_BYTES),
        int(model.bucket_bytes_cap),
    ]
    places = list(range(len(arrived)))  # given, they keep the order
    parameters: list[Tensor] = [parameter for _, parameter in arrived]
    buckets, _ = _compute_bucket_assignment_by_size(parameters, caps, [False] * len(places), places)
    return [tuple(arrived[place][0] for place in bucket) for bucket in buckets]
