"""What ``gaussiank advise`` says, as text and JSON, and the settings that it writes."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import gaussiank
from gaussiank_lab.cluster.adamw import Case, Choice, choices
from gaussiank_lab.cluster.advice import HIERARCHICAL, LEAST_GAIN, TOLERANCE, Advice, Candidate
from gaussiank_lab.cluster.scenario import ScenarioSetting
from gaussiank_lab.cluster.simulate import bits_text, count_text, plain_table, seconds_text, times_text
from gaussiank_lab.outputs import write_whole
from gaussiank_lab.sim import Method

FORMAT = 1
UNSURE_GAIN = 1.2
"""A smaller gain is within what a prediction misses."""


def show_advice(console: Console, setting: ScenarioSetting, workers: int, advice: Advice) -> None:
    """Print what to do, the predicted gain and its uncertainty, why, and the alternatives."""
    model = setting.scenario.workload
    console.print(
        f"{model.name}, {count_text(model.numel)} parameters, on {setting.label}, {workers} "
        f"worker{'s' * (workers > 1)}\n",
        highlight=False,
    )
    for line in (verdict(advice), gain_text(advice), *reasons(setting, workers, advice)):
        console.print(line, highlight=False)
    if call := call_text(advice, sgd=not setting.rows):
        console.print(f"\n    {call}", highlight=False, soft_wrap=True)
    else:
        console.print("Plain DDP does that.")
    console.print()
    shown = {candidate.method: candidate for candidate in (*advice.dense, *advice.ranked, advice.best)}
    rows = sorted(shown.values(), key=lambda candidate: candidate.step_s)
    console.print(_alternatives(rows, advice))
    if alike := likeness(rows):
        console.print(f"\n{alike}", highlight=False)
    console.print("\nTime only: a lower density, and every collective but allgather, delays part of the gradient.")
    assumed = [words for words in setting.assumed if not words.startswith("jitter")]
    console.print(f"Assumed: {'; '.join([*assumed, 'no jitter, which simulate adds'])}.", highlight=False)


def verdict(advice: Advice) -> str:
    """Say in a sentence what to do."""
    method, baseline = advice.best.method, advice.baseline.method.name
    if advice.compress:
        return (
            f"Compress: {method.compressor}, density {method.density:g}, codec {method.wire.name}, "
            f"collective {method.collective}, {_scope(method)}."
        )
    fastest = advice.baseline.step_s / advice.ranked[0].step_s
    if fastest < 1:
        return f"Do not compress: {baseline} is faster."
    if fastest < LEAST_GAIN:
        return f"Do not compress: no setting gains {100 * (LEAST_GAIN - 1):.0f} % over {baseline}."
    return f"Do not compress: {baseline} may well be as fast. Measure this cluster with gaussiank probe to be sure."


def gain_text(advice: Advice) -> str:
    """Say what is predicted, and how sure it is."""
    return (
        f"Predicted step: {seconds_text(advice.baseline.step_s)} with {advice.baseline.method.name}, "
        f"{seconds_text(advice.best.step_s)} compressed: {times_text(advice.gain)}{_surely(advice)}."
    )


def _surely(advice: Advice) -> str:
    gain, low, high = map(times_text, (advice.gain, advice.low, advice.high))
    if low == gain == high:
        return ", within 0.01 with 80 % probability"
    return f", with 80 % probability {low if low == high else f'{low} to {high}'}"


def likeness(rows: Sequence[Candidate]) -> str:
    """Say which of the fastest are too close to call; nothing where the first is alone.

    Args:
        rows: the fastest first.
    """
    alike = [row for row in rows if row.step_s <= (1 + TOLERANCE) * rows[0].step_s]
    if len(alike) == 1:
        return ""
    which = "All rows" if len(alike) == len(rows) else f"The first {len(alike)} rows"
    return f"{which} are within {100 * TOLERANCE:.0f} % of each other: closer than a prediction can tell apart."


def reasons(setting: ScenarioSetting, workers: int, advice: Advice) -> list[str]:
    """Say why: what dense waits for, what compressing costs, and at which bandwidth the answer turns."""
    if workers == 1:
        return ["Why: one worker sends nothing, so selection can only cost."]
    link = setting.scenario.cluster.tiers[-1].link
    waits, costs = (
        seconds_text(seconds) if seconds > 0 else "nothing" for seconds in (advice.waits_s, advice.selects_s)
    )
    lines = [
        f"Why: {advice.baseline.method.name} waits {waits} a step for messages that backward does not hide. "
        f"Compressed, selection, codec and messages take {costs} instead."
    ]
    if advice.pays_below_bits_s == 0:
        lines.append(f"It would not gain 5 % even if {link.name} carried a thousandth.")
    elif math.isinf(advice.pays_below_bits_s):
        lines.append(f"It would pay even if {link.name} carried a thousand times as much: latency alone decides.")
    else:
        lines.append(
            f"Compressing gains 5 % or more where a link carries up to {bits_text(advice.pays_below_bits_s)} of data; "
            f"yours ({link.name}) carries {bits_text(link.bandwidth_bits_s)}."
        )
    if advice.compress and advice.best.method != advice.ranked[0].method:
        lines.append(
            f"Of what is within {100 * TOLERANCE:.0f} % of the fastest, this sends the highest density, and of that "
            "returns least to the residual."
        )
    if advice.compress and advice.gain < UNSURE_GAIN:
        lines.append(
            f'Below {UNSURE_GAIN:g}x measure it before you rely on it, or write collective="auto", which measures '
            "while it trains and goes back to dense where that is faster."
        )
    if advice.compress and advice.best.method.collective == "hierarchical":
        lines.append(f"Note: {HIERARCHICAL}.")
    if advice.compress and not setting.rows:
        lines.append(
            "With SGD's momentum, set momentum=0 in the optimizer: MomentumCorrection(0.9) in the line is in its place "
            "(without momentum, leave it out). Density 0.01 suits some thousands of steps, 0.001 tens of thousands."
        )
    if advice.compress and setting.rows:
        lines.append(
            'With AdamW, give compress precondition=gaussiank.AdamRows(), scope="layer" and clip_norm= as well, and '
            "step with SGD: docs/adamw.md, and --adamw-steps here for its price."
        )
    if not advice.compress and advice.baseline.method.value_bytes == 2:
        lines.append("This sends dense gradients in 16 bits; on NCCL, torch's own bf16_compress_hook does the same:")
    return lines


def call_text(advice: Advice, *, sgd: bool = False) -> str:
    """Return the line of code that does what is advised; nothing where plain DDP does.

    Args:
        advice: what is advised.
        sgd: whether SGD trains such a model, whose momentum has to move into ``compress``.
    """
    how = _settings(advice)
    if how == {"methods": ["dense"]}:
        return ""
    (compressor,) = how.pop("methods")
    arguments = {"density": how.pop("density", None), "compressor": compressor, **how}
    written = [f"{name}={value!r}".replace("'", '"') for name, value in arguments.items() if value is not None]
    if advice.compress and sgd:
        written.append("momentum=gaussiank.MomentumCorrection(0.9)")
    return f"gaussiank.compress(model, {', '.join(written)})"


def advice_text(setting: ScenarioSetting, workers: int, advice: Advice, adamw: Case | None = None) -> str:
    """Return everything as JSON text."""
    return json.dumps(
        {
            "format": FORMAT,
            "kind": "gaussiank advice",
            "gaussiank": gaussiank.__version__,
            "setting": setting.label,
            "model": setting.scenario.workload.name,
            "workers": workers,
            "compress": advice.compress,
            "verdict": verdict(advice),
            "reasons": reasons(setting, workers, advice),
            "gain": advice.gain,
            "gain_low": advice.low,
            "gain_high": advice.high,
            "call": call_text(advice, sgd=not setting.rows),
            "best": _record(advice.best),
            "baseline": _record(advice.baseline),
            "pays_below_bits_s": advice.pays_below_bits_s if math.isfinite(advice.pays_below_bits_s) else None,
            **({"adamw": [_adamw_record(one) for one in choices(adamw)]} if adamw else {}),
            "ranked": [_record(candidate) for candidate in advice.ranked],
            "sources": list(setting.sources),
            "assumed": list(setting.assumed),
        },
        indent=1,
    )


def apply_advice(path: Path, setting: ScenarioSetting, workers: int, advice: Advice) -> str:
    """Write the settings as a configuration that ``train`` and the hook take.

    Returns:
        What to do with it.

    Raises:
        ValueError: it cannot be written there, or something is there already.
    """
    from gaussiank_lab.models import MODELS
    from gaussiank_lab.train.config import default

    model = setting.scenario.workload.name
    known = default(model) if model in MODELS else {}
    wanted = {**known, "workers": workers, **_settings(advice)}
    if setting.accelerator:
        wanted["device"] = "cuda"
    if path.exists():
        raise ValueError(
            f"apply must be a new file, got {path}, which is there already. Give another name, or move it away."
        )
    try:
        write_whole(path, (json.dumps(wanted, indent=2) + "\n").encode())
    except OSError as error:
        raise ValueError(f"apply must be a file that can be written, got {path}: {error.strerror}.") from None
    if not known:
        return f"It holds the exchange alone: train has no {model}. Give a model of its own with --model."
    return (
        f"With train's own data and batch for {model}: torchrun ... -m gaussiank train --config {path}, on {workers} "
        "workers in all."
    )


def _settings(advice: Advice) -> dict[str, Any]:
    """Return what is advised, by the names that ``train`` and ``compress`` have for it."""
    method = advice.best.method
    if not advice.compress:
        narrow = advice.baseline.method.value_bytes == 2
        return {"methods": ["dense:values=bf16" if narrow else "dense"]}
    return {
        "methods": [method.compressor],
        "density": method.density,
        "scope": method.scope,
        "wire": method.wire.name,
        "collective": method.collective,
    }


def _record(candidate: Candidate) -> dict[str, Any]:
    method = candidate.method
    return {
        "compressor": method.compressor,
        "density": None if method.sends_all else method.density,
        "codec": f"{8 * method.value_bytes} bits" if method.sends_all else method.wire.name,
        "collective": "all-reduce" if method.sends_all else method.collective,
        "scope": method.scope,
        "step_s": candidate.step_s,
    }


def _adamw_record(choice: Choice) -> dict[str, Any]:
    return {**asdict(choice), "price": choice.price and choice.price._asdict(), "nats": choice.nats}


def _alternatives(rows: Sequence[Candidate], advice: Advice) -> Table:
    headers = ("step", "gain", "density", "codec", "scope")
    star = "what is advised" if advice.compress else "what comes nearest"
    table = plain_table(f"Dense, the best of each collective, * {star}", ("method", *headers))
    for row in rows:
        method, gain = row.method, times_text(advice.baseline.step_s / row.step_s)
        sparse = (f"{method.density:g}", method.wire.name, method.scope)
        name = method.name if method.sends_all else f"topk {method.collective}{' *' * (row == advice.best)}"
        table.add_row(name, seconds_text(row.step_s), gain, *(("", "", "") if method.sends_all else sparse))
    return table


def _scope(method: Method) -> str:
    return "once for the whole model" if method.scope == "model" else "bucket by bucket"
