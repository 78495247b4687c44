"""What to take for a transformer that is trained by AdamW: method, line of code, and its price in nats."""

from __future__ import annotations

from dataclasses import dataclass, replace

from gaussiank_lab.cluster.advice import DENSE, DENSE_16, LOCAL, LOCAL_EVERY, TWO_BIT
from gaussiank_lab.cluster.scenario import ScenarioSetting
from gaussiank_lab.sim import Method, Spread, local_steps, simulate

LONG_STEPS = 10_000
"""From here on a density of 1/1024 visits an entry ten times; below, 1/256 does."""
ENOUGH = 1.25
"""How many times faster a step of local steps must be to be worth their higher price."""


@dataclass(frozen=True)
class Choice:
    """One way.

    Attributes:
        name: in a few words.
        call: its line of code, empty for plain DDP.
        nats: a byte above dense AdamW in the study, or None for dense itself.
        step_s: predicted seconds of a step, a mean over a round.
    """

    name: str
    call: str
    nats: float | None
    step_s: float


ROWS_PRICES = {256: 0.034, 1024: 0.048}
LOCAL_PRICE = 0.113
"""Nats a byte above dense AdamW after 2,000 steps of the study's model of 195,360 parameters: docs/adamw.md."""
SOURCE = "docs/adamw.md: 195,360 parameters, 4 workers, 2,000 steps, one seed each; 0.03 are noise"


def choices(setting: ScenarioSetting, workers: int, steps: int) -> list[Choice]:
    """Return dense AdamW, sparse AdamW and local steps; what is advised comes first.

    Args:
        setting: cluster and model.
        workers: how many.
        steps: of the training, which decide the density.
    """
    scenario = replace(setting.scenario, spread=Spread())
    inverse = 1024 if steps >= LONG_STEPS else 256
    sparse = Method("sparse AdamW", "topk", 1 / inverse, TWO_BIT)
    step_s = {one: simulate(scenario, one, workers, traced=1).step_s for one in (DENSE, DENSE_16, sparse)}
    dense = min((DENSE, DENSE_16), key=step_s.__getitem__)
    narrow = ', compressor="dense:values=bf16"'
    found = [
        Choice(
            f"dense AdamW, {dense.name}",
            f"gaussiank.compress(model{narrow})" if dense is DENSE_16 else "",
            None,
            step_s[dense],
        ),
        Choice(
            f"sparse AdamW, density 1/{inverse}",
            f'gaussiank.compress(model, density=1 / {inverse}, scope="layer", clip_norm=1.0, wire="rice+2bit", '
            "precondition=gaussiank.AdamRows())",
            ROWS_PRICES[inverse],
            step_s[sparse],
        ),
        Choice(
            f"local steps, every {LOCAL_EVERY}, density 1/16",
            "local = gaussiank.LocalSteps(model, optimizer)",
            LOCAL_PRICE,
            local_steps(scenario, LOCAL, workers, LOCAL_EVERY).step_s,
        ),
    ]
    best = found[0]
    for other in found[1:]:  # each costs more in accuracy than the one before
        best = other if best.step_s > ENOUGH * other.step_s else best
    return [best, *(one for one in found if one is not best)]
