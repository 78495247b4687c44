from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gaussiank.layout import Layout


@given(st.lists(st.integers(0, 50), min_size=1, max_size=8))
def test_slices_lie_end_to_end(numels: list[int]) -> None:
    layout = Layout(tuple(f"p{i}" for i in range(len(numels))), tuple(numels))
    vector = [name for name, numel in zip(layout.names, numels, strict=True) for _ in range(numel)]
    assert layout.numel == len(vector)
    for name, place in layout.slices():
        assert vector[place] == [name] * numels[layout.names.index(name)]
    assert [place.start for _, place in layout.slices()] == [sum(numels[:i]) for i in range(len(numels))]


def test_order_names_and_lengths_make_the_key() -> None:
    layout = Layout(("a", "b"), (2, 2))
    known = {layout: "found"}
    assert known[Layout(("a", "b"), (2, 2))] == "found"
    assert Layout(("b", "a"), (2, 2)) not in known
    assert Layout(("a", "b"), (1, 3)) not in known
    assert Layout(("ab",), (4,)) not in known


def test_refuses_more_names_than_lengths() -> None:
    with pytest.raises(ValueError, match="zip"):
        list(Layout(("a", "b"), (2,)).slices())
