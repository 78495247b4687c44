"""What to take for a transformer that is trained by AdamW: method, density, wire, step, price in nats, and the code."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

from rich.console import Console

from gaussiank_lab.cluster.advice import (
    DENSE,
    DENSE_16,
    HIERARCHICAL,
    LOCAL,
    LOCAL_EVERY,
    TOLERANCE,
    TWO_BIT,
    WIRES,
    other_links,
)
from gaussiank_lab.cluster.scenario import ScenarioSetting
from gaussiank_lab.cluster.simulate import bits_text, count_text, plain_table, seconds_text
from gaussiank_lab.sim import Method, Scenario, Spread, WireSize, all_gather_s, local_steps, simulate

DENSITIES = (1 / 64, 1 / 256, 1 / 1024)
ENOUGH_VISITS = 2000 / 256
"""Density x steps: how often an entry is sent in a run. With fewer the price was higher; see ``ROWS``."""
ENOUGH = 1.25
"""How many times faster a step must be to be worth another optimizer, or a higher price."""
RULE = (
    "Local steps are taken where round trips, not bytes, are most of what sparse AdamW waits for, and where their step "
    f"is {ENOUGH:g} times faster."
)
MOMENT_HEADER_BYTES = 2
"""Before the second moments of a step, which take a byte each."""


class Measured(NamedTuple):
    """A line of results/adamw: what a setting cost there.

    Attributes:
        density: share of entries that are sent.
        steps: of the run.
        nats: a byte above dense AdamW of as many steps.
        seeds: how many.
        line: the settings, as the table there names them.
    """

    density: float
    steps: int
    nats: float
    seeds: int
    line: str

    @property
    def visits(self) -> float:
        """Density x steps, how often an entry was sent."""
        return self.density * self.steps

    def near(self, density: float, visits: float) -> bool:
        """Return whether it was measured at about this density (0.0045 is 1/256) and as many visits."""
        return max(_apart(self.density, density), _apart(self.visits, visits)) <= ALIKE


STUDY_STEPS = 2000
STUDY = "195,360 parameters, 4 workers, 2,000 steps, where 0.03 are noise; docs/adamw.md has it up to 5.1M"
_BY_ROW = "method=sparse beta1=0 beta2=0.95 density={} scope=layer clip=local precondition=row"
ROWS = (
    Measured(1 / 1024, STUDY_STEPS, 0.068, 1, f"{_BY_ROW.format(0.000976562)} sums=8bit"),
    Measured(1 / 1024, 4000, 0.044, 1, f"{_BY_ROW.format(0.000976562)} sums=8bit"),
    Measured(1 / 256, STUDY_STEPS, 0.008, 3, f"{_BY_ROW.format(0.00390625)} sums=8bit"),
    Measured(0.0045, STUDY_STEPS, 0.002, 5, f"{_BY_ROW.format(0.0045)} sums=8bit"),
    Measured(1 / 64, STUDY_STEPS, 0.0, 3, f"{_BY_ROW.format(0.015625)} sums=8bit"),
)
"""Of ``AdamRows``, the fewest visits first."""
DENSER = Measured(1 / 16, STUDY_STEPS, 0.076, 1, f"{_BY_ROW.format(0.0625)} sums=8bit")
"""Of ``AdamRows`` too: more density than it bears. So the highest to choose from is 1/64."""
ROUNDS = Measured(
    1 / 160, STUDY_STEPS, 0.113, 1, "method=local density=0.0625 compressor=chunktopk clip=local sync_every=10"
)
"""Of ``LocalSteps`` as it is by default: a sixteenth every ten steps."""
ALIKE = 1.25
"""Densities, and visits, that are this many times apart count as the same."""


def _apart(one: float, other: float) -> float:
    return max(one / other, other / one)


def price(density: float, steps: int) -> Measured:
    """Return what ``AdamRows`` cost where the study came nearest, in density or in visits: the worse of the two.

    Example:
        >>> [f"{one.density:.4f} {one.visits:.2g} {one.nats}" for one in (price(1 / 64, 2000), price(1 / 1024, 20_000))]
        ['0.0156 31 0.0', '0.0010 3.9 0.044']
    """
    visits = density * steps
    at_density = min(ROWS, key=lambda one: (_apart(one.density, density), _apart(one.visits, visits)))
    if at_density.near(density, visits):
        return at_density
    return max(at_density, min(ROWS, key=lambda one: _apart(one.visits, visits)), key=lambda one: one.nats)


@dataclass(frozen=True)
class Choice:
    """One way.

    Attributes:
        name: in a few words.
        density: share of entries that are sent, None for all.
        wire: how they travel.
        bits: that a worker sends another one, a parameter and step, second moments counted.
        step_s: predicted seconds of a step, a mean over a round.
        price: what it cost in the study, None for dense itself.
        code: lines to write, none for plain DDP.
        why: in a sentence.
    """

    name: str
    density: float | None
    wire: str
    bits: float
    step_s: float
    price: Measured | None
    code: tuple[str, ...]
    why: str

    @property
    def nats(self) -> float | None:
        """A byte above dense AdamW in the study, or None for dense itself."""
        return None if self.price is None else self.price.nats


@dataclass(frozen=True)
class Case:
    """Who asks.

    Args:
        setting: cluster and model; with ``shards``, those of one shard (``between_nodes``).
        workers: that exchange with each other.
        steps: of the training.
        shards: workers that hold one replica (FSDP2), 1 for DDP.

    Raises:
        ValueError: a model that is no transformer.
    """

    setting: ScenarioSetting
    workers: int
    steps: int
    shards: int = 1

    def __post_init__(self) -> None:
        if not self.setting.rows:
            raise ValueError(
                f"model must be a transformer with adamw_steps, got {self.setting.scenario.workload.name}. What AdamW "
                "costs was measured on transformers alone; gpt2, or a number of parameters such as 60M, is one."
            )

    @property
    def scenario(self) -> Scenario:
        """Without jitter, which is the same for all."""
        return replace(self.setting.scenario, spread=Spread())

    @property
    def numel(self) -> int:
        """Entries that a worker exchanges."""
        return self.setting.scenario.workload.numel

    @property
    def moment_bits(self) -> float:
        """What the second moments of a step take on the wire, over all parameters."""
        return 8 * (MOMENT_HEADER_BYTES + self.setting.rows) / self.numel

    def step_s(self, method: Method, *, at_once: bool = False) -> float:
        """Predict a step; ``at_once``: as if no message took time to set off and to travel, its bytes alone."""
        scenario = self.scenario
        if at_once:
            scenario = replace(scenario, cluster=other_links(scenario.cluster, 1.0, 0.0))
        return simulate(scenario, method, self.workers, traced=1).step_s + self._late_moments_s(scenario, method)

    def _late_moments_s(self, scenario: Scenario, method: Method) -> float:
        """Return what the step waits for second moments: they travel while it ends and the next one begins."""
        if method.sends_all:
            return 0.0
        workload = scenario.workload
        behind_s = workload.optimizer_s + workload.forward_s + workload.buckets[0].backward_s
        moments_bytes = MOMENT_HEADER_BYTES + self.setting.rows
        return max(0.0, all_gather_s(scenario.cluster, self.workers, moments_bytes) - behind_s)


def choices(case: Case) -> list[Choice]:
    """Return dense AdamW, sparse AdamW and local steps; what is advised comes first.

    Sparse AdamW is advised where its step is 1.25 times faster than dense; local steps where theirs is 1.25 times
    faster again, and what sparse AdamW waits for are round trips more than bytes: on links that are slow but not late
    every step was the better one at equal bytes.
    """
    dense, method = _dense(case)
    sparse, exchanged = _sparse(case, dense.step_s)
    rounds, late = _rounds(case, sparse, exchanged)
    best = sparse if dense.step_s > ENOUGH * sparse.step_s else dense
    if late and min(best.step_s, sparse.step_s) > ENOUGH * rounds.step_s:
        best = rounds
    if best is dense:
        dense = best = replace(dense, why=_why_dense(case, method, min(sparse, rounds, key=lambda one: one.step_s)))
    return [best, *(one for one in (dense, sparse, rounds) if one is not best)]


def _dense(case: Case) -> tuple[Choice, Method]:
    step_s = {one: case.step_s(one) for one in (DENSE, DENSE_16)}
    method = DENSE if step_s[DENSE] <= step_s[DENSE_16] * (1 + TOLERANCE) else DENSE_16
    code: tuple[str, ...] = ()
    if method is DENSE_16:
        code = ('gaussiank.compress(model, compressor="dense:values=bf16")',)
        if case.shards > 1:
            code = ("fully_shard(..., mesh=mesh, mp_policy=MixedPrecisionPolicy(reduce_dtype=torch.bfloat16))",)
    bits = 8 * method.value_bytes
    return Choice(f"dense AdamW in {bits} bits", None, f"{bits} bits", bits, step_s[method], None, code, ""), method


def _why_dense(case: Case, dense: Method, other: Choice) -> str:
    if case.workers == 1:
        return "one worker sends nothing."
    waits_s = case.step_s(dense) - case.scenario.workload.alone_s
    waits = f"waits {seconds_text(waits_s)} for messages" if waits_s > 1e-6 else "waits for nothing"
    return (
        f"a dense step {waits}; the fastest other way takes {seconds_text(other.step_s)} ({other.name}), which is not "
        f"{ENOUGH:g} times faster."
    )


# ---------------------------------------------------------------------- sparse AdamW at every step


def _sparse(case: Case, dense_s: float) -> tuple[Choice, Method]:
    """Choose buckets and collective; the density is the lowest that sends each entry often enough in so many steps.

    So it follows from the steps alone, and two models of about one size get the same.
    """
    wire = WIRES["chunks12+2bit"] if case.setting.accelerator else TWO_BIT
    density = min((one for one in DENSITIES if one * case.steps >= ENOUGH_VISITS), default=max(DENSITIES))
    scopes = ("bucket", "model") if case.shards == 1 else ("bucket",)

    def timed(collective: str) -> list[tuple[float, Method]]:
        ways = [Method("sparse", "topk", density, wire, collective, scope) for scope in scopes]
        return [(case.step_s(way), way) for way in ways]

    found = timed("allgather")
    if len(case.scenario.cluster.levels(case.workers)) > 1:
        nodes = timed("hierarchical")
        found = nodes if min(found)[0] > ENOUGH * min(nodes)[0] else found
    fastest_s = min(seconds for seconds, _ in found)
    step_s, method = next(one for one in found if one[0] <= fastest_s * (1 + TOLERANCE))
    alone_s = case.scenario.workload.alone_s
    why = (
        f"a dense step waits {seconds_text(dense_s - alone_s)} for messages, this one "
        f"{seconds_text(max(0.0, step_s - alone_s))} with selection; {case.steps:,} steps at "
        f"{_share(density)} send each entry about {density * case.steps:.2g} times; {ENOUGH_VISITS:.0f} were enough in "
        "the study."
    )
    bits = _payload_bits(wire, method.density, case.numel) + case.moment_bits
    name, code = "sparse AdamW at every step", _sparse_code(case, method)
    return Choice(name, method.density, wire.name, bits, step_s, price(density, case.steps), code, why), method


def _payload_bits(wire: WireSize, density: float, numel: int) -> float:
    return 8 * wire.payload_bytes(max(1, density * numel), numel) / numel


def _sparse_code(case: Case, method: Method) -> tuple[str, ...]:
    settings = [
        f"density=1 / {round(1 / method.density)}",
        *(["mesh=mesh"] if case.shards > 1 else []),
        'scope="layer"',
        "clip_norm=1.0",
        f'wire="{method.wire.name}"',
        *([f'collective="{method.collective}"'] if method.collective != "allgather" else []),
        "precondition=gaussiank.AdamRows()",
    ]
    wrap = ["model = DistributedDataParallel(model)"]
    if method.scope == "model":
        whole = math.ceil(4 * case.numel / 2**20)
        wrap = [
            f"model = DistributedDataParallel(model, bucket_cap_mb={whole})  # one message a step, not one a bucket"
        ]
    if case.shards > 1:
        wrap = _sharded(case)
    return (
        *wrap,
        *([f"# {HIERARCHICAL}"] if method.collective == "hierarchical" else []),
        f"compression = gaussiank.compress(model, {', '.join(settings)})",
        "optimizer = torch.optim.SGD(model.parameters(), lr=lr, weight_decay=0.1)  # in AdamW's place; tune lr again",
        "# no clip_grad_norm_ after backward: clip_norm= clips before",
        "compression.save(folder)  # with each checkpoint, on every worker; load(folder) resumes",
    )


def _sharded(case: Case) -> list[str]:
    nodes, shards = case.workers, case.shards
    device = "cuda" if case.setting.accelerator else "cpu"
    return [
        f'mesh = init_device_mesh("{device}", ({nodes}, {shards}), mesh_dim_names=("replicate", "shard"))',
        'fully_shard(model, mesh=mesh["shard"])  # each block first, likewise',
    ]


# ---------------------------------------------------------------------- local steps


def _rounds(case: Case, sparse: Choice, exchanged: Method) -> tuple[Choice, bool]:
    """Return local steps, and whether round trips are most of what sparse AdamW waits for."""
    step_s = local_steps(case.scenario, LOCAL, case.workers, LOCAL_EVERY).step_s
    late_s = sparse.step_s - case.step_s(exchanged, at_once=True)
    late = late_s > (sparse.step_s - case.scenario.workload.alone_s) / 2
    group = ', group=mesh.get_group("replicate")' if case.shards > 1 else ""
    alone = "# the bare module, no DistributedDataParallel around it; AdamW stays as it is"
    code = (
        *(_sharded(case) if group else [alone]),
        f"local = gaussiank.LocalSteps(model, optimizer{group})",
        "local.step()  # after each optimizer.step()",
        "local.finish()  # once, at the end",
        f"# tune the learning rate again; to resume, {'see docs/fsdp.md' if group else 'local.save and local.load'}",
    )
    why = (
        f"with an exchange at every step, {seconds_text(late_s)} of {seconds_text(sparse.step_s)} would be what "
        "messages take whatever their bytes."
    )
    bits = _payload_bits(TWO_BIT, LOCAL.density, case.numel) / LOCAL_EVERY
    name = f"local steps, an exchange every {LOCAL_EVERY}"
    return Choice(name, LOCAL.density, TWO_BIT.name, bits, step_s, ROUNDS, code, why), late


# ---------------------------------------------------------------------- as text


def show_adamw(console: Console, case: Case) -> None:
    """Print what to take: method, density, wire, step, price with its source, lines of code; then the other ways."""
    best, *_ = found = choices(case)
    for line in (
        f"{_asked(case)}\n",
        f"Take {best.name}.",
        f"  density  {_density(best)}",
        f"  wire     {_wire(case, best)}",
        f"  step     {seconds_text(best.step_s)}, predicted{_against(best, found)}",
        f"  price    {_price(case, best)}",
        f"  why      {best.why}\n",
        *(f"    {line}" for line in best.code or ("# plain DDP, or plain HSDP, does that",)),
    ):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    console.print()
    table = plain_table("* what is advised", ("method", "density", "step", "nats a byte\nabove dense"))
    for choice in sorted(found, key=lambda one: one.step_s):
        nats = "0" if choice.nats is None else f"{choice.nats:+.2f}"
        mark = " *" * (choice is best)
        table.add_row(f"{choice.name}{mark}", _density(choice), seconds_text(choice.step_s), nats)
    console.print(table)
    assumed = [words for words in case.setting.assumed if not words.startswith("jitter")]
    for line in (
        RULE,
        f"Prices: {STUDY}. Yours was not measured: train some hundred steps both ways first.",
        f"Assumed: {'; '.join(assumed)}. Your own step: --step-ms; your link: --gbit, --round-trip-ms.",
    ):
        console.print(f"\n{line}", highlight=False, markup=False)


def _asked(case: Case) -> str:
    model, label = case.setting.scenario.workload.name, case.setting.label
    workers = f"{case.workers} worker{'s' * (case.workers > 1)}"
    if case.shards > 1:
        link = bits_text(case.scenario.cluster.tiers[-1].link.bandwidth_bits_s)
        workers = f"{case.workers} machines of {case.shards} that share out the model, {link} for each worker"
    numel = count_text(case.numel * case.shards)
    return f"{model}, {numel} parameters, AdamW for {case.steps:,} steps, {workers}, on {label}"


def _density(choice: Choice) -> str:
    return "all" if choice.density is None else f"1/{round(1 / choice.density)}"


def _wire(case: Case, choice: Choice) -> str:
    if choice.price is None:
        return choice.wire
    share = f", {100 * case.moment_bits / choice.bits:.0f} % of them AdamRows' moments"
    return f"{choice.wire}: {choice.bits:.2g} bits a parameter and step{share * (choice.price is not ROUNDS)}"


def _against(best: Choice, found: list[Choice]) -> str:
    dense = next(one for one in found if one.price is None)
    if best is dense:
        return ""
    return f"; {dense.name} {seconds_text(dense.step_s)}, {dense.step_s / best.step_s:.3g} times as long"


def _price(case: Case, choice: Choice) -> str:
    if choice.price is None:
        return "none"
    one = choice.price
    seeds = f"{one.seeds} seed{'s' * (one.seeds > 1)}"
    said = f"{one.nats:+.2f} nats a byte above dense AdamW"
    if one is ROUNDS:
        more = ""
        if case.steps < STUDY_STEPS:
            more = ", and more in so short a run, where sync_every=5, density=1 / 4 did better: docs/local-steps.md"
        return f"{said} ({seeds}; results/adamw: {one.line}){more}"
    density = choice.density or 1.0
    yours = f"{_share(density)}, each entry sent {density * case.steps:.2g} times,"
    more = "" if one.near(density, density * case.steps) else f": the nearest row. Yours, {yours} was not measured"
    if density == max(DENSITIES):
        more += f"; denser is worse, {DENSER.nats:+.2f} at {_share(DENSER.density)}"
    if "hierarchical" in "".join(choice.code):
        more += "; hierarchical was not measured: what it cuts waits longer"
    measured = f"{_share(one.density)} over {one.steps:,} steps, each entry sent {one.visits:.2g} times, {seeds}"
    return f"{said} ({measured}; results/adamw: {one.line}){more}"


def _share(density: float) -> str:
    """Write a density as people do: 1/256, or 0.0045."""
    return f"1/{1 / density:.0f}" if (1 / density).is_integer() else f"{density:g}"
