from __future__ import annotations

import io

from rich.console import Console, RenderableType
from tests.each import each

from gaussiank_lab.bench.rows import Row
from gaussiank_lab.bench.tables import laws_table, ops_table, plain_text, size_text


def printed(table: RenderableType) -> list[str]:
    out = io.StringIO()
    Console(file=out, width=80).print(table)
    return [line.rstrip() for line in out.getvalue().splitlines()]


def row(**fields: object) -> Row:
    common = {"kind": "operator", "family": "ours", "backend": "avx2", "state": "steady", "law": "normal"}
    common |= {"numel": 10_000_000, "density": 0.001, "seconds": 0.0041, "of_ceiling": 0.973, "gb_per_s": 29.27}
    return {**common, "operator": "topk", "kept_over_k": 1.0, "recall": 1.0, **fields}


def test_table_of_a_setting() -> None:
    rows = [
        row(kind="ceiling", operator="add in place", family="ceiling", backend="torch", kept_over_k=None, recall=None),
        row(operator="published Gaussian_k", family="peer", backend="torch", seconds=0.0911, kept_over_k=0.2512),
        row(seconds=0.0051),
        row(seconds=0.0063, backend="scalar"),
        row(seconds=0.2, backend="reference"),
        row(seconds=0.0057, state="cold"),
        {"kind": "skipped", "operator": "published MSTopK", "backend": "torch", "reason": "9 runs need about 31 s"},
    ]
    lines = printed(ops_table(rows))
    assert lines[0] == "1e7 entries, density 0.001, normal"
    assert [line.split("  ")[0] for line in lines[4:9]] == [
        "add in place",
        "topk",
        "topk cold",
        "published Gaussian_k torch",
        "topk",
    ]  # the fastest first; of ours, the fastest backend and the reference
    assert lines[7].split() == ["published", "Gaussian_k", "torch", "91.1", "97.3", "29.3", "0.251", "1.00"]
    assert lines[4].split() == ["add", "in", "place", "torch", "4.10", "97.3", "29.3", "–", "–"]
    assert lines[9] == "Skipped: published MSTopK (torch): 9 runs need about 31 s."


def test_real_rows_fit_80_columns(settings_of_rows: list[list[Row]], rows: list[Row]) -> None:
    for setting in settings_of_rows:
        lines = printed(ops_table(setting))
        assert max(map(len, lines)) <= 80
        assert all("…" not in line for line in lines)
    table = laws_table(rows)
    assert table is not None
    assert max(map(len, printed(table))) <= 80


def test_table_of_laws_has_the_largest_size_and_smallest_density() -> None:
    laws = ["normal", "laplace", "student-t3", "uniform", "triangular", "residual"]
    rows = [row(law=law, kept_over_k=1 + 0.1 * place) for place, law in enumerate(laws)]
    rows += [row(law=law, kept_over_k=9.0, numel=1000) for law in laws]
    rows += [row(law=law, kept_over_k=9.0, density=0.01) for law in laws]
    rows += [row(law=law, kept_over_k=9.0, state="cold") for law in laws]
    rows += [row(operator="published Gaussian_k", law="normal", kept_over_k=0.25)]
    table = laws_table(rows)
    assert table is not None
    lines = printed(table)
    assert lines[0] == "kept/k of 1e7 entries, density 0.001, by law"
    assert lines[1].split() == ["operator", "normal", "laplace", "t3", "uniform", "triang.", "residual"]
    assert lines[3].split() == ["topk", "1.00", "1.10", "1.20", "1.30", "1.40", "1.50"]
    assert lines[4].split() == ["published", "Gaussian_k", "0.250", "–", "–", "–", "–", "–"]
    assert laws_table(rows[:1]) is None


@each(
    ("value", "text"),
    [(0.0, "0"), (1.0, "1.00"), (9.996, "10.0"), (999.6, "1,000"), (0.00012345, "0.000123"), (float("nan"), "–")],
)
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert plain_text(value) == text


def test_sizes_are_powers_of_ten_if_they_can_be() -> None:
    assert [size_text(numel) for numel in (1000, 250_000, 2**20)] == ["1e3", "250,000", "1,048,576"]
