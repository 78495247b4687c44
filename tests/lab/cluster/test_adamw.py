"""``advise --adamw-steps``: what it takes for which link and length, what that costs, and that its code runs."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from tests.each import each
from torch.nn.parallel import DistributedDataParallel
from typer.testing import CliRunner

import gaussiank
from gaussiank.reducer.precondition import AdamRows, Preconditioner
from gaussiank_lab.cli import app
from gaussiank_lab.cluster.adamw import DENSER, ROUNDS, ROWS, Case, Choice, choices, price
from gaussiank_lab.cluster.scenario import between_nodes, of_preset, resolve
from gaussiank_lab.cluster.shapes import find_shape
from gaussiank_lab.models import MODELS

ROOT = Path(__file__).parents[3]
NOISE = 0.03


def best(*arguments: object, steps: int = 20_000, workers: int = 8) -> Choice:
    """What is advised for a setting as ``resolve`` takes it."""
    return choices(Case(resolve(None, None, "gpt2", *arguments), workers, steps))[0]  # type: ignore[arg-type]  # numbers


def test_prices_are_those_of_the_study_and_its_page() -> None:
    results = (ROOT / "results" / "adamw" / "README.md").read_text(encoding="utf-8")
    runs = {2000: results.partition("## medium")[0], 4000: results.partition(" 4,000 steps")[2].partition("\n## ")[0]}
    page = (ROOT / "docs" / "adamw.md").read_text(encoding="utf-8")
    for one in (*ROWS, DENSER, ROUNDS):
        rows = runs[one.steps]
        (above,) = re.findall(rf"^\| `{re.escape(one.line)}` \|(?:[^|]*\|){{4}} ([+-][\d.]+) \|", rows, re.MULTILINE)
        assert float(above) == pytest.approx(one.nats, abs=NOISE / 2), (
            f"write the row's {above} into adamw.py: {one.line}"
        )
        assert one is DENSER or re.search(rf"[+-]{abs(one.nats):.3f} \({one.seeds} seed", page), (
            f"{one.nats} is not in docs/adamw.md"
        )


def test_second_moments_are_those_of_the_model() -> None:
    width, layers = 768, 12
    block = {
        "ln_1.weight": (width,), "ln_1.bias": (width,), "ln_2.weight": (width,), "ln_2.bias": (width,),
        "attn.c_attn.weight": (width, 3 * width), "attn.c_attn.bias": (3 * width,),
        "attn.c_proj.weight": (width, width), "attn.c_proj.bias": (width,),
        "mlp.c_fc.weight": (width, 4 * width), "mlp.c_fc.bias": (4 * width,),
        "mlp.c_proj.weight": (4 * width, width), "mlp.c_proj.bias": (width,),
    }  # fmt: skip
    gpt2 = {f"h.{layer}.{name}": shape for layer in range(layers) for name, shape in block.items()}
    gpt2 |= {"wte": (50_257, width), "wpe": (1024, width), "ln_f.weight": (width,), "ln_f.bias": (width,)}
    ours = {name: tuple(one.shape) for name, one in MODELS["transformer"].build(256).named_parameters()}
    for name, shapes in (("gpt2", gpt2), ("transformer", ours)):
        turned = {
            one: 1 for one in shapes if name == "gpt2" and one.endswith(("_attn.weight", "_proj.weight", "_fc.weight"))
        }
        found, rows = find_shape(name), Preconditioner(AdamRows(outputs=turned), shapes, 1)
        assert found.numel == sum(torch.Size(shape).numel() for shape in shapes.values())
        assert found.rows == sum(map(rows.rows, shapes))
    bits = [8 * shape.rows / shape.numel for shape in map(find_shape, ("gpt2", "gpt2-medium", "transformer-1.3b"))]
    assert [round(one, 3) for one in bits] == [0.016, 0.013, 0.007]  # docs/adamw.md


def test_the_density_follows_how_often_an_entry_is_sent() -> None:
    densities = [best(0.1, steps=steps).density for steps in (100, 500, 1_999, 2_000, 7_999, 8_000, 10**6)]
    assert densities == [1 / 64, 1 / 64, 1 / 64, 1 / 256, 1 / 256, 1 / 1024, 1 / 1024]
    quick = best(
        1, None, None, 2_000.0
    )  # a step of two seconds hides a message four times as long: no reason to send it
    assert quick.density == 1 / 1024
    for steps, density in ((1_000, 1 / 64), (5_000, 1 / 256), (20_000, 1 / 1024)):
        alike = [Case(resolve(None, None, model, 1.0), 8, steps) for model in ("1.3B", "transformer-1.3b")]
        assert [choices(one)[0].density for one in alike] == [density] * 2


def test_a_price_that_was_not_measured_is_the_nearest_row_s_and_says_so() -> None:
    # the density, steps, and nats of the row, which is the worse of the nearest in density and the nearest in visits
    for density, steps, nats, measured in (
        (1 / 64, 2_000, 0.0, True),
        (1 / 256, 2_000, 0.008, True),
        (1 / 1024, 4_000, 0.044, True),
        (1 / 64, 100, 0.068, False),
        (1 / 256, 5_000, 0.008, False),
        (1 / 1024, 20_000, 0.044, False),
    ):
        found = price(density, steps)
        assert (found.nats, found.near(density, density * steps)) == (nats, measured), (density, steps)
    printed = {
        steps: CliRunner().invoke(app, f"advise --gbit 1 --model gpt2 --adamw-steps {steps}".split()).stdout
        for steps in (1_000, 2_000, 20_000)
    }
    assert "(1/1024 over 4,000 steps, each entry sent 3.9 times, 1 seed; results/adamw: " in printed[20_000]
    assert "the nearest row. Yours, 1/1024, each entry sent 20 times, was not measured\n" in printed[20_000]
    assert "was not measured" not in printed[2_000].partition("Prices:")[0]
    assert "denser is worse, +0.08 at 1/16\n" in printed[1_000]


def test_second_moments_count_in_bits_and_time() -> None:
    case = Case(resolve(None, None, "gpt2", 0.1), 8, 20_000)
    sparse = choices(case)[0]
    assert sparse.bits == pytest.approx((12 + 13 / 4 + 2.25) / 1024 + 0.0164, rel=0.03)
    narrow = Case(resolve(None, None, "3M", 0.001), 8, 20_000)
    without = Case(of_preset("1gbe-workstations", "3M", 0.001), 8, 20_000)
    object.__setattr__(without.setting, "rows", 1)
    longer = choices(narrow)[0].step_s - choices(without)[0].step_s
    assert longer == pytest.approx(7 * narrow.setting.rows * 8 / (0.001e9 * 1448 / 1538), rel=0.2)


def test_slow_links_get_every_step_and_late_ones_rounds() -> None:
    assert [best(gbit).name for gbit in (1.0, 0.1, 0.02)] == ["sparse AdamW at every step"] * 3
    some = best(1.0, None, 10.0)
    assert "bucket_cap_mb=475" in some.code[0]  # one message in place of twenty
    late = best(1.0, None, 40.0)
    assert late.name.startswith("local steps")
    assert late.price is ROUNDS
    assert best(1.0, None, 40.0, workers=1).why == "one worker sends nothing."
    # the rule of the pages: round trips, not bytes, are most of the wait, and that wait is long beside computing
    for gbit, workers, trip_ms, name in (
        (0.1, 2, 40.0, "sparse"),  # bytes take longer than round trips
        (0.1, 8, 40.0, "sparse"),
        (1.0, 2, 40.0, "sparse"),  # round trips, and short beside a step
        (1.0, 8, 80.0, "local"),
        (0.1, 8, 200.0, "local"),
    ):
        found = choices(Case(resolve(None, None, "350M", gbit, None, trip_ms), workers, 20_000))[0].name
        assert found.startswith(name), (gbit, workers, trip_ms, found)
    fast = choices(Case(of_preset("nvlink+ib", "gpt2"), 64, 20_000))[0]
    assert (fast.density, fast.nats, fast.code) == (None, None, ())


def test_sharded_models_exchange_shards_between_machines() -> None:
    whole = of_preset("25gbe-8xH100", "gpt2-xl", 1.0, 4)
    shard, machines, shards = between_nodes(whole, 16)
    assert (machines, shards) == (4, 4)
    assert 4 * shard.scenario.workload.numel == pytest.approx(whole.scenario.workload.numel, abs=100)
    assert [tier.link.bandwidth_bits_s for tier in shard.scenario.cluster.tiers] == [
        pytest.approx(0.25e9 * 1448 / 1538)
    ]
    sparse = choices(Case(shard, machines, 20_000, shards))[0]
    assert 'mesh_dim_names=("replicate", "shard")' in sparse.code[0]
    assert "mesh=mesh" in sparse.code[2]
    far, *_ = between_nodes(of_preset("wan-500mbit", "transformer-7b"), 64)
    assert 'group=mesh.get_group("replicate")' in choices(Case(far, 8, 20_000, 8))[0].code[2]
    with pytest.raises(ValueError, match=r"^workers must be a multiple of 4, those of a machine, with fsdp, got 10\."):
        between_nodes(whole, 10)
    with pytest.raises(ValueError, match=r"^fsdp must come with machines of several workers, got 1gbe-workstations"):
        between_nodes(of_preset("1gbe-workstations", "gpt2"), 8)


def test_the_printed_code_runs(tmp_path: Path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        run_printed_code(tmp_path)
    finally:
        torch.distributed.destroy_process_group()


def run_printed_code(tmp_path: Path) -> None:
    for arguments in ((1.0,), (1.0, None, 10.0), (1.0, None, 40.0)):
        model = torch.nn.Linear(40, 8)
        found = {
            "gaussiank": gaussiank, "torch": torch, "DistributedDataParallel": DistributedDataParallel, "lr": 0.1,
            "model": model, "optimizer": torch.optim.AdamW(model.parameters()), "folder": tmp_path,
        }  # fmt: skip
        for line in best(*arguments).code:
            if "finish" in line or "save" in line:
                found["model"](torch.ones(2, 40)).sum().backward()
                found["optimizer"].step()
            exec(line, found)


@each(
    ("arguments", "sentence"),
    [
        (
            "--preset 100gbe --model resnet50 --adamw-steps 9",
            "model must be a transformer with adamw_steps, got resnet50. ",
        ),
        ("--preset 100gbe --model gpt2 --fsdp", "fsdp must come with adamw_steps, got none. "),
        ("--preset 100gbe --model gpt2 --adamw-steps 9 --density 0.1", "density must be left out with adamw_steps, "),
        ("--gbit 1 --model gpt2 --step-ms 0", "step_ms must be above 0, got 0. "),
        ("--gbit 1 --model gpt2 --round-trip-ms -1", "round_trip_ms must be at least 0, got -1. "),
        ("--probe p.json --step-ms 5", "step_ms must come with a preset, got 5 for p.json. "),
        ("--gbit 1 --model 0M", "model must be one of alexnet, "),
    ],
)
def test_what_does_not_go_together_is_refused(arguments: str, sentence: str) -> None:
    result = CliRunner().invoke(app, ["advise", *arguments.split()])
    assert str(result.exception).startswith(sentence), result.exception


def test_json_holds_what_the_text_says() -> None:
    arguments = ["advise", "--gbit", "1", "--workers", "8", "--model", "gpt2", "--adamw-steps", "20000"]
    text = CliRunner().invoke(app, arguments, env={"COLUMNS": "300"}).stdout
    first = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout)["adamw"][0]
    assert f"Take {first['name']}." in text
    assert all(f"    {line}\n" in text for line in first["code"])
    assert f"wire     {first['wire']}: {first['bits']:.2g} bits" in text
    assert f"price    {first['nats']:+.2f} nats" in text
    assert f"{first['price']['steps']:,} steps" in text
    assert f"results/adamw: {first['price']['line']})" in text
