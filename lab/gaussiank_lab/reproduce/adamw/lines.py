"""What the studies train: methods, their settings, learning rates and seeds, as data, what decides most first."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

from gaussiank_lab.reproduce.adamw.setting import Setting

RATES = (0.006, 0.003, 0.012, 0.0015)
"""Learning rates, the likeliest first."""
LOW, LOWER = 0.0045, 1 / 1024
"""Densities beside 1/64: about 0.045 and 0.012 bits a parameter and step at 2 bits a value."""


def grid(line: Setting, rates: Iterable[float] = RATES, seeds: Iterable[int] = (0,)) -> Iterator[Setting]:
    """Yield a line at several learning rates and seeds; its own rate does not count."""
    for rate in rates:
        for seed in seeds:
            yield replace(line, lr=rate, seed=seed)


def dense(**changes: Any) -> Setting:
    """AdamW on whole gradients, with the mean clipped."""
    return Setting("dense", 0.012, **{"clip": "mean", **changes})


def sparse(density: float, **changes: Any) -> Setting:
    """Top_k at every step, clipped locally, AdamW without momentum."""
    return Setting("sparse", 0.012, **{"density": density, "beta1": 0.0, "clip": "local", **changes})


def rows(density: float, **changes: Any) -> Setting:
    """Preconditioned by row, then Top_k."""
    return sparse(density, **{"precondition": "row", "beta2": 0.95, **changes})


def local(sync_every: int, density: float, **changes: Any) -> Setting:
    """Inner AdamW, and a sparse difference every so many steps."""
    given = {"compressor": "chunktopk", "decay": 0.95, "clip": "local", **changes}
    return Setting("local", 0.012, sync_every=sync_every, density=density, **given)


def diloco(sync_every: int, **changes: Any) -> Setting:
    """DiLoCo as published: whole differences, outer Nesterov momentum."""
    given = {"wire": "dense", "outer_lr": 0.7, "outer_momentum": 0.9, "clip": "local", **changes}
    return Setting("local", 0.012, sync_every=sync_every, **given)


def screening() -> Iterator[Setting]:
    """Yield what is tried on the small model with one seed; what loses there is not tried on a larger one."""
    yield from grid(dense(), (*RATES, 0.024))
    yield from grid(rows(LOW), RATES[:3])
    yield from grid(sparse(LOW, scope="layer"), RATES[:3])
    yield from grid(local(10, 1 / 16), RATES[:3])
    yield from grid(sparse(LOW), RATES[:3])
    yield from grid(rows(LOW, scope="layer"), RATES[:2])
    yield from grid(rows(LOW, clip="none"), RATES[:2])
    yield from grid(sparse(LOW, warm=True), RATES[:2])
    yield from grid(sparse(LOW, clip="none"), RATES[:2])
    yield from grid(sparse(1 / 64, scope="layer"), RATES[:3])
    yield from grid(rows(1 / 64), RATES[:3])
    yield from grid(sparse(LOW, beta1=0.9), RATES[:2])
    yield from grid(dense(beta1=0.0), RATES[:2])
    yield from grid(sparse(LOW, compressor="chunktopk"), RATES[:2])
    yield from grid(rows(LOW, compressor="chunktopk"), RATES[:2])
    yield from grid(local(30, 3 / 16), RATES[:2])
    yield from grid(local(5, 1 / 32), RATES[:2])
    yield from grid(local(10, 1 / 16, decay=1.0), RATES[:2])
    yield from grid(local(10, 1 / 16, compressor="topk"), RATES[:2])
    yield from grid(rows(LOW, beta2=0.99), RATES[:2])
    yield from grid(rows(LOW, precondition="entry", beta2=0.99), RATES[:2])
    yield from grid(rows(LOW, precondition="block"), RATES[:2])
    yield from grid(rows(LOW, precondition="column"), RATES[:2])
    yield from grid(diloco(10), RATES[:3])
    yield from grid(local(10, 1 / 16, outer_lr=0.7, outer_momentum=0.9), RATES[:2])
    yield from momentum()
    yield from grid(sparse(1 / 64, beta1=0.9), RATES[:2])
    yield from grid(sparse(1 / 64), RATES[:2])
    yield from grid(diloco(10, wire="dense+8bit"), RATES[:2])
    yield from grid(local(10, 1 / 32, wire="rice+8bit"), RATES[:2])
    yield from grid(local(10, 1 / 16, outer_lr=1.4), RATES[:2])
    yield from grid(local(15, 3 / 32), RATES[:2])
    yield from grid(rows(LOW, beta2=0.999), RATES[:2])
    yield from grid(rows(LOW, precondition="entry", beta2=0.999), RATES[:2])
    yield from grid(sparse(LOW, beta2=0.95), RATES[:2])
    yield from grid(sparse(0.0037, wire="rice+4bit"), RATES[:2])
    yield from grid(sparse(LOWER, scope="layer"), RATES[:3])
    yield from grid(rows(LOWER), RATES[:3])
    yield from grid(local(30, 1 / 64), RATES[:3])
    yield from peers()


def momentum() -> Iterator[Setting]:
    """Yield the ways to put momentum back."""
    for line in (
        sparse(LOW, beta1=0.5),
        sparse(LOW, correction=0.9),
        sparse(LOW, correction=0.9, masking=True),
        sparse(LOW, correction=0.9, masking=True, nesterov=True),
        rows(LOW, correction=0.9, masking=True),
        rows(LOW, beta1=0.5),
        rows(LOW, lookahead=0.5),
        rows(LOW, lookahead=1.0),
    ):
        yield from grid(line, RATES[:2])


def peers() -> Iterator[Setting]:
    """Yield the rules of others."""
    yield from grid(Setting("powersgd", 0.012, rank=1, clip="local"), RATES[:3])
    yield from grid(Setting("demo", 0.003, density=1 / 64, decay=0.999, compressor="chunktopk"), (0.003, 0.001))
    yield from grid(Setting("bf16", 0.012, clip="mean"), RATES[:2])
    yield from grid(sparse(LOW, frozen=0.15), RATES[:2])


STUDIES: dict[str, Callable[[Setting], bool]] = {
    "sparse-adamw": lambda setting: setting.method != "local",
    "local-steps": lambda setting: setting.method in ("local", "dense"),
}
"""Name of a study on the command line -> which settings are of it."""


def settings_of(studies: Iterable[str]) -> list[Setting]:
    """Return the runs of some studies, what decides most first."""
    wanted = [STUDIES[name] for name in studies]
    return [one for one in screening() if any(belongs(one) for belongs in wanted)]
