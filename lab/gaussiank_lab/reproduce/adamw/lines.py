"""What the studies train: methods, their settings, learning rates and seeds, as data, what decides most first."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

from gaussiank_lab.reproduce.adamw.setting import StudySetting

BEST = 0.006
"""Learning rate at which most lines of the small model are best."""
RATES = (BEST, 0.003, 0.012, 0.0015)
"""What is kept is tried at all of them."""
LOW, LOWER = 0.0045, 1 / 1024
"""Densities beside 1/64: about 0.05 and 0.012 bits a parameter and step at 2 bits a value."""


def grid(line: StudySetting, rates: Iterable[float] = RATES, seeds: Iterable[int] = (0,)) -> Iterator[StudySetting]:
    """Yield a line at several learning rates and seeds; its own rate does not count."""
    for rate in rates:
        for seed in seeds:
            yield replace(line, lr=rate, seed=seed)


def each(lines: Iterable[StudySetting], rates: Iterable[float] = (BEST,)) -> Iterator[StudySetting]:
    """Yield several lines, each at some learning rates."""
    rates = tuple(rates)
    for line in lines:
        yield from grid(line, rates)


def dense(**changes: Any) -> StudySetting:
    """AdamW on whole gradients, with the mean clipped."""
    return StudySetting("dense", BEST, **{"clip": "mean", **changes})


def sparse(density: float, **changes: Any) -> StudySetting:
    """Top_k at every step, clipped locally, AdamW without momentum."""
    return StudySetting("sparse", BEST, **{"density": density, "beta1": 0.0, "clip": "local", **changes})


def rows(density: float, **changes: Any) -> StudySetting:
    """Preconditioned by row, then Top_k of each parameter."""
    return sparse(density, **{"precondition": "row", "beta2": 0.95, "scope": "layer", **changes})


def coded(density: float, **changes: Any) -> StudySetting:
    """Preconditioned by row with sums in 8 bits, as the library's ``AdamRows`` sends them."""
    return rows(density, **{"sums": "8bit", **changes})


def layered(density: float, **changes: Any) -> StudySetting:
    """Top_k of each parameter."""
    return sparse(density, scope="layer", **changes)


def local(sync_every: int, density: float, **changes: Any) -> StudySetting:
    """Inner AdamW, and a sparse difference every so many steps."""
    given = {"compressor": "chunktopk", "decay": 0.95, "clip": "local", **changes}
    return StudySetting("local", BEST, sync_every=sync_every, density=density, **given)


def layer_rounds(sync_every: int, density: float, **changes: Any) -> StudySetting:
    """Local steps with Top_k of each parameter, of which nothing is forgotten."""
    return local(sync_every, density, **{"compressor": "topk", "scope": "layer", "decay": 1.0, **changes})


def diloco(sync_every: int, **changes: Any) -> StudySetting:
    """DiLoCo as published: whole differences, outer Nesterov momentum."""
    given = {"wire": "dense", "outer_lr": 0.7, "outer_momentum": 0.9, "clip": "local", **changes}
    return StudySetting("local", BEST, sync_every=sync_every, **given)


def screening() -> Iterator[StudySetting]:
    """Yield what is tried on the small model, then on larger ones: what lost on the small is not tried there."""
    kept = (coded(1 / 64), layered(1 / 64), coded(1 / 256), local(10, 1 / 16), coded(LOW), layered(LOW), dense())
    for line in kept:
        yield from grid(line, (BEST,), (0, 1, 2))
    yield from each(kept, RATES[1:3])
    for line in (rows(LOW, beta2=0.999), layered(LOW, beta2=0.9998), layer_rounds(10, 1 / 16, outer_lr=1.4)):
        yield from grid(line, (BEST,), (0, 1, 2))
    yield from grid(layer_rounds(5, 1 / 32, outer_lr=1.4), (BEST,), (0, 1, 2))
    yield from peers()
    yield from lower_densities()
    yield from more_workers()
    yield from larger_batches()
    yield from preconditioners()
    yield from momentum()
    yield from selection()
    yield from local_steps()
    yield from finals("medium", 8)
    yield from finals("large", 4)
    yield from each(kept, RATES[3:])
    for line in (dense(), rows(LOW), coded(LOW)):
        yield from grid(line, (BEST,), (0, 1, 2, 3, 4))
    yield from grid(dense(), (0.024,))
    yield from grid(dense(), (0.003,), (0, 1))
    yield from each((rows(LOW),), RATES[1:3])


def peers() -> Iterator[StudySetting]:
    """Yield the rules of others; DiLoCo and SparseLoCo's settings are among the local steps."""
    yield StudySetting("bf16", BEST, clip="mean")
    yield from each([StudySetting("powersgd", BEST, rank=rank, clip="local") for rank in (1, 4)], RATES[:2])
    yield from grid(StudySetting("demo", 0.003, density=1 / 64, decay=0.999, compressor="chunktopk"), (0.003, 0.001))


def lower_densities() -> Iterator[StudySetting]:
    """Yield densities from 1/16 to 1/1024, those that visit an entry seldom also with twice the steps."""
    yield from each((coded(1 / 16), layered(1 / 16), layered(1 / 256), rows(LOWER), coded(LOWER), layered(LOWER)))
    longer = {"steps": 4000}
    yield from each((dense(**longer), coded(LOWER, **longer), layered(LOWER, **longer), local(30, 1 / 16, **longer)))


def more_workers() -> Iterator[StudySetting]:
    """Yield 2 and 8 workers in place of 4."""
    for workers in (2, 8):
        among = {"workers": workers}
        yield from each((dense(**among), coded(LOW, **among), layered(LOW, **among), local(10, 1 / 16, **among)))


def larger_batches() -> Iterator[StudySetting]:
    """Yield batches of 16 a worker, where momentum is worth more."""
    of_16 = {"batch": 16}
    lines = (dense(**of_16), rows(LOW, **of_16), layered(LOW, **of_16), dense(beta1=0.0, **of_16))
    yield from each(lines, (BEST, 0.012))
    yield from each((rows(LOW, correction=0.9, masking=True, **of_16),))


def preconditioners() -> Iterator[StudySetting]:
    """Yield what shares one second moment, and how long it remembers."""
    shared = [rows(LOW, precondition=by) for by in ("block", "column", "inputs", "entry")]
    yield from each([*shared, rows(LOW, precondition="entry", beta2=0.99)])
    yield from each([rows(LOW, beta2=beta2) for beta2 in (0.9, 0.99, 0.999)])
    yield from each((rows(1 / 64, scope="bucket"),), RATES[:2])
    yield from each((rows(LOW, scope="bucket"),), RATES[:3])
    yield from grid(rows(LOW, scope="bucket"), (0.003,), (1,))
    yield from grid(rows(LOW, scope="bucket", clip="none"), (0.003,))


def momentum() -> Iterator[StudySetting]:
    """Yield what momentum costs, and the ways to put it back."""
    yield from each((dense(beta1=0.0), layered(LOW, beta1=0.9), layered(LOW, beta1=0.5)), RATES[:2])
    yield from each((layered(LOW, beta1=0.9, beta2=0.95),), RATES[:2])
    moved = {"correction": 0.9}
    yield from each((rows(LOW, masking=True, **moved),), RATES[:3])
    yield from each([layered(LOW, **moved), layered(LOW, masking=True, **moved)])
    yield from each([layered(LOW, masking=True, nesterov=True, **moved), layered(LOW, frozen=0.15)])
    yield from each([rows(LOW, beta1=0.5), rows(LOW, lookahead=0.5), rows(LOW, lookahead=1.0)])


def selection() -> Iterator[StudySetting]:
    """Yield where k is counted, clipping, how long Adam remembers, the warm-up of the density, and wires."""
    yield from each((sparse(LOW),), RATES[:3])
    yield from each((sparse(LOW, compressor="chunktopk"), rows(LOW, scope="bucket", compressor="chunktopk")))
    yield from each([line(LOW, clip="none") for line in (sparse, layered, rows)])
    yield from each([layered(LOW, beta2=beta2) for beta2 in (0.95, 0.9999)])
    long = {"beta2": 0.9998}
    yield from each((layered(LOW, **long),), RATES[:3])
    yield from each([layered(density, **long) for density in (1 / 64, 1 / 256, LOWER)])
    yield from each((layered(LOW, beta1=0.9, **long), sparse(LOW, compressor="chunktopk", **long)))
    yield from each((layered(LOW, warm=True), rows(LOW, warm=True)))
    yield from each((layered(0.0037, wire="rice+4bit"), layered(0.0026, wire="rice+bf16-rice")))


def local_steps() -> Iterator[StudySetting]:
    """Yield local steps with one setting changed at a time, most at about 0.05 bits, and DiLoCo."""
    yield from each((diloco(10), diloco(10, wire="dense+8bit")), RATES[:2])
    yield from each([local(1, LOW, decay=1.0), local(5, 1 / 32), local(15, 3 / 32)])
    yield from each((local(30, 3 / 16), local(30, 1 / 16)), RATES[:2])
    yield from grid(local(30, 1 / 64), (0.003,))
    yield from grid(local(100, 5 / 8), (0.003,))
    yield from each([local(10, density) for density in (1 / 4, 1 / 64, 1 / 80)])
    yield from each((local(10, 1 / 16, compressor="topk"), layer_rounds(10, 1 / 16, decay=0.95)))
    yield from each((layer_rounds(10, 1 / 16),), (BEST, 0.012))
    yield from each([layer_rounds(5, density) for density in (1 / 32, 1 / 160)])
    yield from each([layer_rounds(10, 1 / 16, outer_lr=1.8), layer_rounds(5, 1 / 160, outer_lr=1.4)])
    yield from grid(layer_rounds(30, 1 / 16, outer_lr=1.8), (0.003,))
    densities = {"rice+8bit": 1 / 28, "rice+4bit": 1 / 22, "rice+bf16-rice": 1 / 30}
    yield from each([local(10, density, wire=wire) for wire, density in densities.items()])
    yield from each([local(10, 1 / 16, decay=decay) for decay in (1.0, 0.9)])
    yield from each([local(10, 1 / 16, outer_lr=outer_lr) for outer_lr in (0.8, 1.4)])
    yield from each((local(10, 1 / 16, outer_lr=0.7, outer_momentum=0.9),))
    yield from each([local(10, 1 / 16, decay=1.0, lookahead=share) for share in (0.5, 1.0)])
    yield from each([local(10, 1 / 16, fragments=parts) for parts in (2, 5)])
    yield from each([local(10, 1 / 16, sync_delay=delay) for delay in (1, 2, 5)])
    yield from each([local(10, 1 / 16, sync_delay=delay, mixing=0.5) for delay in (2, 5)])
    yield from each(
        (local(10, 1 / 16, fragments=2, sync_delay=5), layer_rounds(10, 1 / 16, sync_delay=2, outer_lr=1.4))
    )


def finals(model: str, batch: int) -> Iterator[StudySetting]:
    """Yield what is kept, on a larger model."""
    larger: dict[str, Any] = {"model": model, "batch": batch}
    lines = (coded(LOW, **larger), dense(**larger), local(10, 1 / 16, **larger), layered(LOW, **larger))
    yield from each((*lines, coded(1 / 64, **larger), layered(1 / 64, **larger)), (0.004,))
    yield from each(lines, (0.002, 0.008))
    yield from each((coded(LOWER, **larger), layered(LOWER, **larger)), (0.004,))
    more = (coded(1 / 256, **larger), layered(LOW, beta2=0.9998, **larger), diloco(10, wire="dense+8bit", **larger))
    yield from each((*more, *(layer_rounds(10, 1 / 16, outer_lr=rate, **larger) for rate in (1.0, 1.4))), (0.004,))


STUDIES: dict[str, Callable[[StudySetting], bool]] = {
    "sparse-adamw": lambda setting: setting.method != "local",
    "local-steps": lambda setting: setting.method in ("local", "dense"),
}
"""Name of a study on the command line -> which settings are of it."""


def settings_of(studies: Iterable[str]) -> list[StudySetting]:
    """Return the runs of some studies, what decides most first."""
    wanted = [STUDIES[name] for name in studies]
    every = {one.key: one for one in screening()}  # what is yielded twice is tried once
    return [one for one in every.values() if any(belongs(one) for belongs in wanted)]
