"""What the studies train: methods, their settings, learning rates and seeds, as data, what decides most first."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

from gaussiank_lab.reproduce.adamw.setting import StudySetting

RATES = (0.003, 0.006, 0.012, 0.0015)
"""Learning rates, the likeliest first; what is kept is tried at all of them."""
LOW, LOWER = 0.0045, 1 / 1024
"""Densities beside 1/64: about 0.05 and 0.012 bits a parameter and step at 2 bits a value."""


def grid(line: StudySetting, rates: Iterable[float] = RATES, seeds: Iterable[int] = (0,)) -> Iterator[StudySetting]:
    """Yield a line at several learning rates and seeds; its own rate does not count."""
    for rate in rates:
        for seed in seeds:
            yield replace(line, lr=rate, seed=seed)


def dense(**changes: Any) -> StudySetting:
    """AdamW on whole gradients, with the mean clipped."""
    return StudySetting("dense", 0.012, **{"clip": "mean", **changes})


def sparse(density: float, **changes: Any) -> StudySetting:
    """Top_k at every step, clipped locally, AdamW without momentum."""
    return StudySetting("sparse", 0.012, **{"density": density, "beta1": 0.0, "clip": "local", **changes})


def rows(density: float, **changes: Any) -> StudySetting:
    """Preconditioned by row, then Top_k of each parameter."""
    return sparse(density, **{"precondition": "row", "beta2": 0.95, "scope": "layer", **changes})


def local(sync_every: int, density: float, **changes: Any) -> StudySetting:
    """Inner AdamW, and a sparse difference every so many steps."""
    given = {"compressor": "chunktopk", "decay": 0.95, "clip": "local", **changes}
    return StudySetting("local", 0.012, sync_every=sync_every, density=density, **given)


def diloco(sync_every: int, **changes: Any) -> StudySetting:
    """DiLoCo as published: whole differences, outer Nesterov momentum."""
    given = {"wire": "dense", "outer_lr": 0.7, "outer_momentum": 0.9, "clip": "local", **changes}
    return StudySetting("local", 0.012, sync_every=sync_every, **given)


def layered(density: float, **changes: Any) -> StudySetting:
    """Top_k of each parameter."""
    return sparse(density, scope="layer", **changes)


def screening() -> Iterator[StudySetting]:
    """Yield what is tried on the small model; what loses there is not tried on a larger one."""
    yield from grid(dense())
    yield from grid(rows(LOW), (0.006, 0.003, 0.012))
    yield from grid(layered(LOW), RATES[:3])
    yield from grid(local(10, 1 / 16), RATES[:3])
    yield from grid(sparse(LOW), RATES[:3])
    yield from grid(rows(LOW, scope="bucket"), RATES[:3])
    yield from grid(rows(LOW, scope="bucket", clip="none"), RATES[:1])
    yield from grid(layered(LOW, warm=True), RATES[1:2])
    yield from grid(layered(1 / 64), (0.006, 0.003))
    yield from grid(rows(1 / 64, scope="bucket"), RATES[:2])
    yield from grid(dense(beta1=0.0), (0.006, 0.003))
    yield from grid(layered(LOW, beta1=0.9), RATES[:2])
    for line, rate in ((dense(), 0.006), (dense(), 0.003), (layered(LOW), 0.006), (rows(LOW), 0.006)):
        yield from grid(line, (rate,), (1,))
    yield from grid(rows(LOW, scope="bucket"), (0.003,), (1,))
    yield from grid(local(10, 1 / 16, decay=1.0, lookahead=1.0), (0.006,))
    yield from grid(local(1, LOW, decay=1.0), (0.006,))
    yield from grid(rows(LOWER), (0.006,))
    yield from grid(rows(LOW, precondition="entry", beta2=0.99), (0.006,))
    yield from grid(rows(LOW, precondition="block"), (0.006,))
    yield from grid(rows(LOW, correction=0.9, masking=True), (0.006,))
    yield from grid(rows(LOW, batch=16), (0.006,))
    yield from grid(dense(batch=16), (0.006,))
    yield from grid(rows(LOW, sums="8bit"), (0.006,))
    yield from large_batch()
    yield from grid(rows(1 / 64), (0.006,))
    yield from grid(layered(LOWER), (0.006,))
    yield from grid(local(5, 1 / 32, scope="layer", compressor="topk", decay=1.0), (0.006,))
    yield from grid(local(30, 3 / 16), (0.003,))
    yield from preconditioners((0.006,))
    yield from finals("medium", 8)
    yield from local_defaults((0.006,))
    yield from momentum((0.006,), (0.006,))
    yield from grid(local(10, 1 / 16), (0.006,), (1,))
    yield from grid(layered(LOW, clip="none"), RATES[1:2])
    yield from grid(rows(LOW, clip="none"), RATES[1:2])
    yield from grid(rows(LOWER), (0.003,))
    yield from grid(layered(LOWER), (0.003, 0.012))
    yield from peers()
    yield from grid(sparse(LOW, compressor="chunktopk"), RATES[:2])
    yield from grid(sparse(LOW, clip="none"), RATES[:2])
    yield from grid(layered(LOW, beta2=0.95), RATES[:2])
    yield from grid(layered(LOW, beta2=0.9998), RATES[:2])
    yield from grid(layered(0.0037, wire="rice+4bit"), RATES[:2])
    yield from grid(layered(0.0026, wire="rice+bf16-rice"), RATES[:2])
    yield from finals("large", 4)
    kept = (rows(LOW), rows(1 / 64), rows(LOWER), layered(LOW), layered(1 / 64), local(10, 1 / 16), dense())
    for line in kept:
        yield from grid(line)
    yield from local_defaults(RATES)
    yield from preconditioners(RATES)
    yield from momentum(RATES, RATES)
    for line in kept:
        yield from grid(line, (0.003, 0.006), (0, 1, 2))


def local_defaults(rates: Iterable[float]) -> Iterator[StudySetting]:
    """Yield local steps with one setting changed at a time, about 0.05 bits, and DiLoCo."""
    for line in (
        diloco(10),
        local(10, 1 / 16, compressor="topk"),
        local(10, 1 / 16, decay=1.0),
        local(10, 1 / 16, decay=1.0, lookahead=1.0),
        local(10, 1 / 16, decay=1.0, lookahead=0.5),
        local(1, LOW, decay=1.0),
        local(30, 3 / 16),
        local(5, 1 / 32),
        local(10, 1 / 16, outer_lr=0.7, outer_momentum=0.9),
        local(10, 1 / 16, compressor="topk", scope="layer"),
        local(15, 3 / 32),
        diloco(10, wire="dense+8bit"),
        local(10, 1 / 28, wire="rice+8bit"),
        local(10, 1 / 16, outer_lr=1.4),
        local(30, 1 / 64),
    ):
        yield from grid(line, rates)


def preconditioners(rates: Iterable[float]) -> Iterator[StudySetting]:
    """Yield what shares one second moment, and how long it remembers."""
    for line in (
        rows(LOW, precondition="entry", beta2=0.99),
        rows(LOW, beta2=0.99),
        rows(LOW, precondition="block"),
        rows(LOW, precondition="column"),
        rows(LOW, precondition="entry"),
        rows(LOW, beta2=0.999),
        rows(LOW, beta2=0.9),
    ):
        yield from grid(line, rates)


def momentum(of_rows: Iterable[float], of_adam: Iterable[float]) -> Iterator[StudySetting]:
    """Yield the ways to put momentum back."""
    of_rows, of_adam = tuple(of_rows), tuple(of_adam)
    yield from grid(rows(LOW, correction=0.9, masking=True), of_rows)
    yield from grid(rows(LOW, lookahead=0.5), of_rows)
    yield from grid(layered(LOW, correction=0.9, masking=True), of_adam)
    yield from grid(layered(LOW, beta1=0.5), of_adam)
    yield from grid(rows(LOW, beta1=0.5), of_rows)
    yield from grid(rows(LOW, lookahead=1.0), of_rows)
    yield from grid(layered(LOW, correction=0.9), of_adam)
    yield from grid(layered(LOW, correction=0.9, masking=True, nesterov=True), of_adam)
    yield from grid(layered(LOW, frozen=0.15), of_adam)


def large_batch() -> Iterator[StudySetting]:
    """Yield batches of 16 a worker, where momentum is worth more."""
    for line in (dense(batch=16), rows(LOW, batch=16), layered(LOW, batch=16), dense(batch=16, beta1=0.0)):
        yield from grid(line, RATES[1:2])


def peers() -> Iterator[StudySetting]:
    """Yield the rules of others."""
    yield from grid(StudySetting("powersgd", 0.003, rank=1, clip="local"), RATES[:2])
    yield from grid(StudySetting("demo", 0.003, density=1 / 64, decay=0.999, compressor="chunktopk"), (0.001, 0.003))
    yield from grid(StudySetting("bf16", 0.006, clip="mean"), RATES[1:2])


def finals(model: str, batch: int) -> Iterator[StudySetting]:
    """Yield what is kept, on a larger model; the sums of a preconditioner in 8 bits, as the library sends them."""
    larger: dict[str, Any] = {"model": model, "batch": batch}
    by_row = {**larger, "sums": "8bit"}
    lines = (rows(LOW, **by_row), dense(**larger), local(10, 1 / 16, **larger), layered(LOW, **larger))
    for line in (*lines, rows(1 / 64, **by_row), layered(1 / 64, **larger)):
        yield from grid(line, (0.004,))
    for line in lines:
        yield from grid(line, (0.002, 0.008, 0.001) if model == "large" else (0.002, 0.008))


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
