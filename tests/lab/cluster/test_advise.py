from __future__ import annotations

import ast
import inspect
import json
import math
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from tests.each import each
from typer.testing import CliRunner

import gaussiank
from gaussiank_lab.cli import app, main
from gaussiank_lab.cluster.advice import DENSITIES, LEAST_GAIN, TOLERANCE, advise
from gaussiank_lab.cluster.advise import apply_advice, call_text, gain_text, likeness
from gaussiank_lab.cluster.scenario import PRESETS, ScenarioSetting, Uncertainty, of_preset
from gaussiank_lab.sim import Bucket, Cluster, Curve, Device, Link, Scenario, Tier, Workload
from gaussiank_lab.train.config import default


def setting(
    bandwidth_bits_s: float = 1e9, select_s: float = 1e-3, uncertainty: Uncertainty | None = None
) -> ScenarioSetting:
    """A model of 100 MB that computes 0.1 s and sends when it is done."""
    device = Device("d", select={"topk": Curve.of([(1, select_s), (1e9, select_s)])})
    cluster = Cluster("c", (Tier("rack", Link("wire", bandwidth_bits_s)),), ("ring",))
    scenario = Scenario(Workload("m", (Bucket(25_000_000, 0.05),), 0.05), device, cluster)
    return ScenarioSetting("here", scenario, 4, False, (), (), uncertainty or Uncertainty())


def output(*arguments: str) -> str:
    done = CliRunner().invoke(app, [*arguments], env={"COLUMNS": "80", "NO_COLOR": "1"}, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_slow_link_compress() -> None:
    advice = advise(setting(1e9), 4)
    bf16_s = 0.1 + 1.5 * 50e6 * 8e-9
    assert advice.compress
    assert advice.baseline.method.name == "dense bf16"
    assert advice.baseline.step_s == pytest.approx(bf16_s)
    assert advice.gain == pytest.approx(bf16_s / advice.best.step_s)
    assert advice.low <= advice.gain <= advice.high


def test_fast_link_or_slow_selection_do_not() -> None:
    for other in (setting(1e13), setting(1e9, select_s=1.0)):
        advice = advise(other, 4)
        assert not advice.compress
        assert advice.gain < LEAST_GAIN


def test_one_worker_never() -> None:
    advice = advise(setting(1e6), 1)
    assert not advice.compress
    assert advice.pays_below_bits_s == 0


def test_break_even_is_where_the_gain_is_five_per_cent() -> None:
    advice = advise(setting(1e9), 4)
    assert 1e9 < advice.pays_below_bits_s < 1e12
    just_below, just_above = (advise(setting(advice.pays_below_bits_s * factor), 4) for factor in (0.9, 1.1))
    assert just_below.baseline.step_s / just_below.ranked[0].step_s >= LEAST_GAIN
    assert just_above.baseline.step_s / just_above.ranked[0].step_s < LEAST_GAIN
    latency = replace(setting(), scenario=replace(setting().scenario, cluster=far()))
    assert math.isinf(advise(latency, 64).pays_below_bits_s)


def far() -> Cluster:
    return Cluster("c", (Tier("rack", Link("far", 1e9, latency_s=0.1)),), ("ring",))


def test_least_lossy_setting_within_tolerance_is_taken() -> None:
    advice = advise(setting(1e11, select_s=1e-6), 4)
    fastest_s = advice.ranked[0].step_s
    assert advice.best.step_s <= fastest_s * (1 + TOLERANCE)
    assert advice.best.method.collective == "allgather"
    assert advice.best.method.density == max(DENSITIES)
    slow = advise(setting(1e7), 64)
    assert slow.best.method.density == min(DENSITIES)
    assert slow.best.method.collective != "allgather"  # its traffic grows with the workers


def test_given_density_is_the_only_one() -> None:
    assert advise(setting(), 4, density=0.05).best.method.density == 0.05


def test_interval_widens_with_uncertainty_and_repeats() -> None:
    sure = advise(setting(uncertainty=Uncertainty(0.01, 0.01, 0.01, 0.01)), 4)
    unsure = advise(setting(uncertainty=Uncertainty(0.5, 0.5, 0.5, 0.5)), 4)
    assert sure.high - sure.low < 0.2 * (unsure.high - unsure.low)
    assert advise(setting(), 4) == advise(setting(), 4)


@each("preset", PRESETS)
def test_every_preset_has_an_answer(preset: str) -> None:
    found = of_preset(preset, "resnet50")
    advice = advise(found, found.workers)
    assert advice.gain > 0
    assert advice.compress == (advice.gain >= LEAST_GAIN and advice.low >= 1)


def test_known_answers() -> None:
    answers = {
        ("10gbe-16xV100", "alexnet"): True,
        ("10gbe-16xV100", "resnet50"): False,
        ("nvlink+ib", "resnet50"): False,
        ("nvlink+ib", "transformer-1.3b"): False,
        ("wan-500mbit", "transformer-1.3b"): True,
        ("25gbe-8xH100", "transformer-1.3b"): True,
    }
    for (preset, model), compress in answers.items():
        found = of_preset(preset, model)
        assert advise(found, found.workers).compress is compress, (preset, model)


def test_text_says_what_why_and_how_sure() -> None:
    text = " ".join(output("advise", "--preset", "10gbe-16xV100", "--model", "alexnet").split())
    assert "Compress: topk, density 0.01, codec chunks+bf16, collective allgather, bucket by bucket." in text
    assert "Why: dense bf16 waits" in text
    assert "with 80 % probability" in text
    assert re.search(r"5 % or more where a link carries up to [\d.]+ Gb/s of data; yours \(10 GbE\) carries 9.41", text)
    assert "set momentum=0 in the optimizer" in text
    assert text.count("momentum=gaussiank.MomentumCorrection(0.9))") == 1
    assert "Below 1.2x" not in text
    text = " ".join(output("advise", "--preset", "1gbe-workstations", "--gbit", "10", "--model", "resnet50").split())
    assert 'Below 1.2x measure it before you rely on it, or write collective="auto"' in text
    text = " ".join(output("advise", "--preset", "25gbe-8xH100", "--model", "transformer-1.3b").split())
    assert (
        "hierarchical is refused in a process group of only some workers where init_process_group has a device_id"
        in text
    )
    assert "MomentumCorrection" not in text
    text = " ".join(output("advise", "--preset", "nvlink+ib", "--model", "resnet50").split())
    assert "Do not compress: dense fp32 is faster." in text


def test_an_interval_that_rounds_to_a_number_is_that_number() -> None:
    advice = advise(setting(), 4)
    assert gain_text(replace(advice, gain=2.301, low=2.296, high=2.304)).endswith(
        ": 2.30x, within 0.01 with 80 % probability."
    )
    assert gain_text(replace(advice, gain=2.34, low=2.296, high=2.304)).endswith("2.34x, with 80 % probability 2.30x.")
    assert gain_text(replace(advice, gain=2.3, low=2.2, high=2.4)).endswith(", with 80 % probability 2.20x to 2.40x.")


def test_the_call_is_one_that_the_hook_takes() -> None:
    sparse = advise(setting(), 4)
    assert sparse.compress
    call = ast.parse(call_text(sparse)).body[0]
    assert isinstance(call, ast.Expr)
    assert isinstance(call.value, ast.Call)
    given = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.value.keywords}
    method = sparse.best.method
    assert given == {
        "density": method.density, "compressor": "topk", "scope": method.scope, "wire": method.wire.name,
        "collective": method.collective,
    }  # fmt: skip
    assert set(given) <= set(inspect.signature(gaussiank.compress).parameters)
    wide, narrow = (replace(sparse, compress=False, baseline=one) for one in sparse.dense)
    assert call_text(wide) == ""
    assert call_text(narrow) == 'gaussiank.compress(model, compressor="dense:values=bf16")'


def test_rows_that_are_too_close_to_call_are_said_to_be() -> None:
    advice = advise(setting(), 4)
    rows = [replace(advice.best, step_s=seconds) for seconds in (1.0, 1.02, 1.029, 1.04)]
    assert likeness(rows) == "The first 3 rows are within 3 % of each other: closer than a prediction can tell apart."
    assert likeness(rows[:2]).startswith("All rows are within 3 %")
    assert likeness(rows[::3]) == ""


def test_help_names_every_preset() -> None:
    for command in ("advise", "simulate"):
        assert ", ".join(PRESETS) in " ".join(output(command, "--help").split())


def test_json_and_applied_configuration_agree(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    arguments = ["--preset", "lab-100mbit", "--model", "resnet20", "--json", "--apply", str(path)]
    found = json.loads(output("advise", *arguments))
    applied = json.loads(path.read_text())
    assert found["compress"] is True
    assert applied["methods"] == [found["best"]["compressor"]] == ["topk"]
    assert applied["density"] == found["best"]["density"]
    assert (applied["model"], applied["workers"]) == ("resnet20", 4)
    from gaussiank_lab.train.config import TrainConfig

    TrainConfig(**{**applied, "methods": tuple(applied["methods"])})  # train takes it
    other = tmp_path / "other.json"
    assert "Plain DDP does that." in output(
        "advise", "--preset", "nvlink+ib", "--model", "resnet50", "--apply", str(other)
    )
    assert json.loads(other.read_text()) == {
        **default("resnet50"), "workers": 64, "methods": ["dense"], "device": "cuda",
    }  # fmt: skip


def test_what_is_applied_says_what_it_is_for(tmp_path: Path) -> None:
    wanted = setting()  # of a model that train does not have
    advice = advise(wanted, 4)
    said = apply_advice(tmp_path / "new" / "config.json", wanted, 4, advice)
    assert said == "It holds the exchange alone: train has no m. Give a model of its own with --model."
    assert json.loads((tmp_path / "new" / "config.json").read_text())["workers"] == 4
    with pytest.raises(ValueError, match=r"^apply must be a file that can be written, got .*: File exists\.$"):
        apply_advice(tmp_path / "new" / "config.json" / "below", wanted, 4, advice)


def test_a_file_that_is_there_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text("mine")
    wanted = setting()
    with pytest.raises(ValueError, match=r"^apply must be a new file, got .*config\.json, which is there already\."):
        apply_advice(path, wanted, 4, advise(wanted, 4))
    assert path.read_text() == "mine"


def test_the_advised_row_is_in_the_table() -> None:
    text = output("advise", "--preset", "1gbe-workstations", "--model", "transformer-1.3b")
    (row,) = (line.split() for line in text.splitlines() if line.startswith("topk ") and " * " in line)
    advice = advise(of_preset("1gbe-workstations", "transformer-1.3b"), 8)
    best = advice.best.method
    assert best != advice.ranked[0].method
    assert row[1:3] == [best.collective, "*"]
    assert row[-3:] == [f"{best.density:g}", best.wire.name, best.scope]
    assert "this sends the highest density" in " ".join(text.split())
    assert "no jitter, which simulate adds" in " ".join(text.split())


def test_advice_from_a_preset_needs_no_torch_and_two_seconds() -> None:
    script = (
        "import sys; from gaussiank_lab.cli import app; "
        "app(['advise', '--preset', '100gbe', '--model', 'resnet50'], standalone_mode=False); "
        "assert 'torch' not in sys.modules; assert 'matplotlib' not in sys.modules; "
        "import time; print(time.process_time())"
    )
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split()[-1]) < 2, f"{time.monotonic() - began:.1f} s on the clock"


@each(
    ("arguments", "sentence"),
    [
        (["--preset", "100gbe", "--model", "gpt9"], "gaussiank: model must be one of alexnet, "),
        (
            ["--preset", "100gbe", "--model", "resnet50", "--workers", "0"],
            "gaussiank: workers must be at least 1, got 0",
        ),
        (
            ["--preset", "100gbe", "--model", "resnet50", "--density", "2"],
            "gaussiank: density must be in (0, 1], got 2",
        ),
        (["--probe", "nowhere.json"], "gaussiank: probe must be a file, got nowhere.json, which does not exist. "),
    ],
)
def test_mistakes_end_with_one_sentence(
    arguments: list[str], sentence: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["gaussiank", "advise", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    printed = capsys.readouterr().err
    assert printed.startswith(sentence)
    assert printed.count("\n") == 1


def test_a_path_that_cannot_be_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("mine")
    arguments = [
        "--preset",
        "lab-1gbit",
        "--model",
        "resnet20",
        "--workers",
        "2",
        "--out",
        str(tmp_path / "file" / "x"),
    ]
    monkeypatch.setattr(sys, "argv", ["gaussiank", "simulate", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith(
        f"gaussiank: out must be a folder that can be written, got {tmp_path / 'file'}, which is a file."
    )
    assert (tmp_path / "file").read_text() == "mine"
