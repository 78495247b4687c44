from __future__ import annotations

import re

import pytest
from tests.each import each

import gaussiank
import gaussiank_lab.sim
import gaussiank_lab.theory
from gaussiank_lab.study.recorder import Recorder


@each(
    ("name", "place", "value"),
    [
        ("Recorder", "gaussiank_lab.Recorder", Recorder),
        ("sim", "gaussiank_lab.sim", gaussiank_lab.sim),
        ("theory", "gaussiank_lab.theory", gaussiank_lab.theory),
    ],
)
def test_the_librarys_old_names_work_and_say_where_they_are(name: str, place: str, value: object) -> None:
    sentence = re.escape(f"gaussiank.{name} has moved. Use {place}.")
    with pytest.warns(DeprecationWarning, match=f"^{sentence}$") as told:
        assert getattr(gaussiank, name) is value
    assert told[0].filename == __file__


def test_public_names() -> None:
    assert gaussiank_lab.Recorder is Recorder
    with pytest.raises(AttributeError, match=r"^module 'gaussiank_lab' has no attribute 'Recorders'$"):
        gaussiank_lab.Recorders  # noqa: B018  looking it up is what raises
