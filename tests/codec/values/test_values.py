"""Every value code x every law: exact on rounded values, lawful residuals, nothing infinite by rounding."""

from __future__ import annotations

import contextlib
import itertools
import math

import pytest
import torch
from tests.codec.conftest import each_backend
from tests.each import each
from torch import Tensor

from gaussiank.codec.values import VALUE_CODES, ValueCode

CODES = list(VALUE_CODES)
LOSSY = [name for name, code in VALUE_CODES.items() if not code.exact]
ON_GRID = [name for name in LOSSY if name not in ("2bit", "sign")]
FIXED = [name for name, code in VALUE_CODES.items() if not code.varies]
VARYING = [name for name, code in VALUE_CODES.items() if code.varies]
BITS = {"fp32": 32, "fp64": 64, "bf16": 16, "fp16": 16, "8bit": 8, "4bit": 4, "2bit": 2, "sign": 1}
DENORMAL, TINY, HUGE = 1e-45, 1e-30, 3.4e38


def vectors(rng: torch.Generator) -> dict[str, torch.Tensor]:
    normal = torch.randn(1000, generator=rng)
    return {
        "none": normal[:0],
        "one": normal[:1],
        "normal": normal,
        "selection": torch.where(normal < 0, -1.0, 1.0) + 0.4 * normal,
        "every size": normal * (torch.randn(1000, generator=rng) * 20).exp(),
        "zeros": torch.zeros(70),
        "negative zeros": -torch.zeros(70),
        "some zeros": torch.where(normal > 0.5, normal, 0.0)[:300],
        "denormal": normal * DENORMAL * 100,
        "tiny": normal * TINY,
        "huge": normal.clamp(-1, 1) * HUGE,
        "largest": torch.full((130,), torch.finfo(torch.float32).max),
        "powers of two": 2.0 ** torch.arange(-126, 128).float(),
        "just under powers of two": torch.nextafter(2.0 ** torch.arange(-126, 128).float(), torch.zeros(254)),
    }


def same(one: torch.Tensor, two: torch.Tensor) -> bool:
    bits = torch.int64 if one.dtype == torch.float64 else torch.int32
    return torch.equal(one.view(bits), two.view(bits))


def round_trip(code: ValueCode, rounded: torch.Tensor, room: int = 0) -> torch.Tensor:
    slots = rounded.numel() + room
    section = code.encode(rounded, slots)
    if code.varies:
        assert section.numel() <= code.bytes_for(rounded.numel())
    else:
        assert section.shape == (code.bytes_for(slots),)
    behind = torch.cat([section, torch.full((3,), 255, dtype=torch.uint8)])
    assert code.size_of(behind, rounded.numel(), slots) == section.numel()
    return code.decode(section, rounded.numel(), slots).to(rounded.dtype)


@each_backend
@each("dtype", [torch.float32, torch.float64])
@each("name", CODES)
def test_rounded_values_come_back_bit_for_bit(
    name: str, dtype: torch.dtype, backend: str, rng: torch.Generator
) -> None:
    code = VALUE_CODES[name]
    for values in vectors(rng).values():
        if dtype == torch.float64 and name == "fp32":
            continue
        before = values.to(dtype)
        rounded = code.round(before)
        assert torch.equal(before, values.to(dtype))
        assert rounded.dtype == dtype
        assert bool(rounded.isfinite().all())
        for room in (0, 1, 64):
            assert same(round_trip(code, rounded, room), rounded)


@each_backend
@each("dtype", [torch.float32, torch.float64])
@each("name", ON_GRID)
def test_the_law_of_the_residual_holds_bit_for_bit(
    name: str, dtype: torch.dtype, backend: str, rng: torch.Generator
) -> None:
    for what, values in vectors(rng).items():
        accumulated = values.to(dtype)
        sent = VALUE_CODES[name].round(accumulated)
        residual = accumulated - sent
        assert torch.equal(residual + sent, accumulated), what
        assert bool((residual.abs() <= accumulated.abs()).all()), what


@each_backend
@each("name", ["2bit", "sign"])
def test_the_law_holds_within_one_unit_where_scales_are_not_powers_of_two(
    name: str, backend: str, rng: torch.Generator
) -> None:
    for what, accumulated in vectors(rng).items():
        sent = VALUE_CODES[name].round(accumulated)
        unit = torch.maximum(sent.abs(), accumulated.abs()) * 2.0**-23
        off = ((accumulated - sent) + sent - accumulated).abs()
        assert bool((off <= unit).all()), what
        usual = (sent.abs() <= 2 * accumulated.abs()) & (accumulated.abs() <= 2.0**16 * sent.abs())
        normal = accumulated.abs() > 1e-30
        assert bool((off[usual & normal] == 0).all()), what


@each_backend
@each("name", CODES)
@each("bad", [torch.nan, torch.inf, -torch.inf])
def test_infinities_and_nan_stay_visible(name: str, bad: float, backend: str, rng: torch.Generator) -> None:
    code = VALUE_CODES[name]
    for count, at in ((1, 0), (64, 63), (200, 70), (200, 199)):
        values = torch.randn(count, generator=rng)
        values[at] = bad
        rounded = code.round(values)
        got = round_trip(code, rounded)
        assert not bool(got[at].isfinite())
        if name != "sign":
            assert torch.equal(got[at], torch.tensor(bad)) or (math.isnan(bad) and bool(got[at].isnan()))
        others = torch.arange(count) != at
        assert torch.equal(got[others], rounded[others])
        assert bool(got[others].isfinite().all())


@each_backend
@each(
    ("name", "relative"),
    [
        ("bf16", 2**-8),
        ("bf16-rice", 2**-8),
        ("fp16", 2**-11),
        ("8bit", 2**-6),
        ("4bit", 0.25),
        ("2bit", 0.5),
    ],
)
def test_error_is_as_small_as_it_says(name: str, relative: float, backend: str, rng: torch.Generator) -> None:
    # magnitudes of one binade, so that none is below the levels of its block
    values = (1 + torch.rand(5000, generator=rng)) * torch.where(torch.rand(5000, generator=rng) < 0.5, -1.0, 1.0)
    error = ((VALUE_CODES[name].round(values) - values) / values).abs().max()
    assert relative / 4 < float(error) <= relative * 1.01


@each_backend
@each(
    ("name", "values", "want"),
    [
        ("bf16", [1.00390625, 1.01171875, 3.3961775e38], [1.0, 1.015625, 3.3895314e38]),
        ("bf16-rice", [1.00390625, 1.01171875, 3.3961775e38], [1.0, 1.015625, 3.3895314e38]),
        ("fp16", [65519.0, -7e4, 1e-9], [65504.0, -70016.0, 0.0]),
        ("8bit", [128.0, 1.5, 2.5, -0.5], [128.0, 2.0, 2.0, 0.0]),
        ("8bit", [127.0, 1.5, 2.5, -0.5], [127.0, 2.0, 2.0, 0.0]),
        ("4bit", [7.0, 5.4, 2.5, 3.5, -0.5, 0.6, -3.4], [7.0, 5.0, 2.0, 4.0, 0.0, 1.0, -3.0]),
        ("2bit", [1.0, -1.0, 2.0], [1.0, -1.0, 2.0]),
        ("2bit", [3.0, -3.0, 3.0], [3.0, -3.0, 3.0]),
        ("sign", [1.0, -3.0, 0.0], [1.3359375, -1.3359375, 1.3359375]),
    ],
)
def test_rounds_as_written_down(name: str, values: list[float], want: list[float], backend: str) -> None:
    assert torch.equal(VALUE_CODES[name].round(torch.tensor(values)), torch.tensor(want))


@each_backend
def test_levels_of_4_bits_are_all_reached(backend: str) -> None:
    code = VALUE_CODES["4bit"]
    levels = torch.arange(-7.0, 8.0) / 16
    assert torch.equal(code.round(levels), levels)
    assert code.encode(levels, 16).tolist() == [0xA9, 0xCB, 0xED, 0x0F, 0x21, 0x43, 0x65, 0x07, 256 - 4]


@each_backend
def test_a_finer_grid_is_taken_where_it_loses_less(backend: str) -> None:
    code = VALUE_CODES["4bit"]
    many = torch.tensor([8.0, *[3.25] * 20])  # 8 fits with a step of 2 alone, where 3.25 becomes 4
    assert torch.equal(code.round(many), torch.tensor([7.0, *[3.0] * 20]))
    few = torch.tensor([14.0, 3.25])
    assert torch.equal(code.round(few), torch.tensor([14.0, 4.0]))


@each_backend
@each("name", [name for name in CODES if VALUE_CODES[name].stochastic])
def test_stochastic_rounding_is_without_bias(name: str, backend: str, rng: torch.Generator) -> None:
    code = VALUE_CODES[name]
    values = torch.tensor([1.0, 0.7001, -0.30003, 0.111]).repeat_interleave(16)
    rounds = torch.stack([code.round(values, "stochastic", rng) for _ in range(400)])
    for row in rounds[:5]:
        assert same(round_trip(code, row), row)
    spread = rounds.std(0) / 20 + 1e-7
    assert bool(((rounds.mean(0) - values).abs() <= 5 * spread).all())
    assert len({tuple(row) for row in rounds[:, 16:].tolist()}) > 1
    error = (values - rounds).abs().max(0).values
    assert bool((error <= 2.01 * (values - code.round(values)).abs().max() + 2**-6 * values.abs()).any())


@each("name", FIXED)
def test_sizes_are_those_of_the_table(name: str) -> None:
    code = VALUE_CODES[name]
    assert code.bytes_for(0) == 0
    per_block = {"8bit": 1, "4bit": 1, "2bit": 2, "sign": 2}.get(name, 0)
    constant = 2 if name == "fp16" else 0
    assert code.bytes_for(640) == 640 * BITS[name] // 8 + 10 * per_block + constant
    assert code.bytes_for(65) == math.ceil(65 * BITS[name] / 8) + 2 * per_block + constant


@each("name", FIXED)
def test_both_backends_decode_any_bytes_alike(name: str, rng: torch.Generator) -> None:
    from gaussiank.ops import use_backend

    code = VALUE_CODES[name]
    for _ in range(30):
        section = torch.randint(256, (code.bytes_for(150),), dtype=torch.uint8, generator=rng)
        got = code.decode(section, 140, 150)
        with use_backend("reference"):
            want = code.decode(section, 140, 150)
        assert torch.equal(got.nan_to_num(nan=12345.0), want.nan_to_num(nan=12345.0))


# ---------------------------------------------------------------------- magnitudes in Rice codes


def section_of(base: int, parameters: list[int], low: list[int], unary: list[int], size: int | None = None) -> Tensor:
    """Write a section of the codes whose size varies by hand; one parameter a nibble, the rest bytes."""
    pairs = [*parameters, 0] if len(parameters) % 2 else parameters
    head = [first | second << 4 for first, second in itertools.pairwise(pairs)][::2]
    body = [*base.to_bytes(2, "little"), *head, *low, *unary]
    return torch.tensor([*(len(body) + 4 if size is None else size).to_bytes(4, "little"), *body], dtype=torch.uint8)


@each_backend
def test_a_section_is_what_the_page_says(backend: str) -> None:
    code, floats = VALUE_CODES["bf16-rice"], torch.tensor([1.0, 1.0234375, -1.0078125])  # 3F80, 3F83, BF81
    # over the least: 0, 3, 1; parameter 0, so that signs are all there is of low bits: 0, 0, 1; quotients 1, 0001, 01
    want = section_of(0x3F80, [0], [0b100], [0b1010001])
    assert code.encode(floats, 3).tolist() == want.tolist()
    assert torch.equal(code.decode(want, 3, 3), floats)


@each_backend
def test_a_block_of_unlike_values_is_written_as_it_is(backend: str) -> None:
    code = VALUE_CODES["bf16-rice"]
    values = torch.tensor([0.0, *[2.0**100] * 63])
    section = code.encode(values, 64)
    assert int(section[6]) == 15
    assert section.numel() == 6 + 1 + 128
    assert torch.equal(code.decode(section, 64, 64), values)


@each_backend
@each("name", VARYING)
@each(
    ("section", "message"),
    [
        (section_of(0x03F8, [0], [0], [], size=5), "fewer"),
        (section_of(0x03F8, [0], [0], [0b111], size=99), "fewer"),
        (section_of(0x03F8, [0], [0], [0b11]), "fewer"),
        (section_of(0x03F8, [14], [0], [0b111]), "fewer"),
        (section_of(0x03F8, [0], [0], [0b111, 0]), "more"),
        (section_of(0x7FFF, [0], [0], [0b11001]), "values of its code, got another"),
        (section_of(0xFFFF, [0], [0], [0b111]), "values of its code, got another"),
    ],
)
def test_damaged_sections_are_refused(name: str, section: Tensor, message: str, backend: str) -> None:
    with pytest.raises(ValueError, match=message):
        VALUE_CODES[name].decode(section, 3, 3)
    with pytest.raises(ValueError, match="more bytes than its entries need"):
        VALUE_CODES[name].decode(section, 0, 0)


@each("name", VARYING)
def test_both_backends_read_damaged_sections_alike(name: str, rng: torch.Generator) -> None:
    from gaussiank.ops import use_backend

    code = VALUE_CODES[name]
    intact, refused = code.encode(code.round(torch.randn(150, generator=rng)), 150), 0
    for _ in range(300):
        section = intact.clone()
        at = torch.randint(4, section.numel(), (2,), generator=rng)
        section[at] = torch.randint(256, (2,), dtype=torch.uint8, generator=rng)
        read = []
        for chosen in ("native", "reference"):
            with use_backend(chosen) if chosen == "reference" else contextlib.nullcontext():
                try:
                    read.append(code.decode(section, 150, 150).nan_to_num(nan=12345.0).tolist())
                except ValueError as error:
                    read.append(str(error)[:12])
        assert read[0] == read[1]
        refused += isinstance(read[0], str)
    assert 0 < refused < 300
