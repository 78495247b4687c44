"""Imports only go down, and the library needs torch and numpy alone: every file under src is read, none is run."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

from tests.each import each
from tests.imports import LAB, LAZY, LIBRARY, modules_of, name_of, room_of, table

LEVELS = [
    {"cost", "durable", "parsing", "sparse", "schedule", "layout", "metrics"},
    {"ops"},
    {"dcp_metadata", "momentum"},
    {"compressors", "codec", "feedback", "reshard"},
    {"comm"},
    {"collectives"},
    {"autotune"},
    {"checkpoint", "reducer"},
    {"compression"},
    {"ddp", "fsdp", "local"},
    {"doors"},
    {"integrations"},
    {"__init__"},
    {"__main__"},
]
LEVEL = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}
DOORS = {"__init__", "__main__"}  # where the lab is named: its old public names, and its command
NEEDS = {"torch", "numpy"}
ADAPTERS = {"transformers", "accelerate", "lightning"}  # each imports the framework of its name
MAX_LINES = 600

FILES = sorted(LIBRARY.rglob("*.py"))


def rooms_of(path: Path, source: str | None = None) -> set[str]:
    """Return the other rooms of the library that a file imports from."""
    parts = [module.split(".") for module in modules_of(path, source)]
    rooms = {names[1] for names in parts if names[0] == "gaussiank" and len(names) > 1}
    return {room for room in rooms if not room.startswith("__")} - {room_of(path)}


def arrows() -> list[tuple[str, str, str]]:
    """Return (file, its room, room it imports from); ``__init__`` imports what its tables name, on first use."""
    written = [(name_of(path), room_of(path), room) for path in FILES for room in sorted(rooms_of(path))]
    lazy = sorted({room.split(".")[0] for room in LAZY.values()} | set(table("_MODULES")))
    return written + [("gaussiank/__init__.py", "__init__", room) for room in lazy]


def test_every_room_has_a_level() -> None:
    homeless = sorted({room_of(path) for path in FILES} - set(LEVEL))
    assert not homeless, f"give these rooms a level: {homeless}"
    empty = sorted(set(LEVEL) - {room_of(path) for path in FILES})
    assert not empty, f"these rooms do not exist any more: {empty}"
    unknown = sorted({f"{name} -> {room}" for name, _, room in arrows() if room not in LEVEL})
    assert not unknown, f"no such room: {unknown}"


def test_imports_only_go_down() -> None:
    upward = [f"{name} -> {room}" for name, own, room in arrows() if LEVEL[room] > LEVEL[own]]
    assert not upward, f"imports must only go down: {upward}"


def test_rooms_of_one_level_do_not_know_each_other() -> None:
    sideways = [f"{name} -> {room}" for name, own, room in arrows() if LEVEL[room] == LEVEL[own]]
    assert not sideways, f"rooms of one level must not import each other: {sideways}"


def test_the_library_needs_torch_and_numpy_alone() -> None:
    allowed = {*sys.stdlib_module_names, *NEEDS, "gaussiank"}
    foreign = [
        f"{name_of(path)} -> {module}"
        for path in FILES
        for module in modules_of(path)
        if module.split(".")[0] not in allowed | ({"triton"} if "/ops/triton/" in path.as_posix() else set())
        and not (room_of(path) == "integrations" and path.stem in ADAPTERS and module.split(".")[0] == path.stem)
    ]
    assert not foreign, f"the library must import torch and numpy alone: {foreign}"


def test_the_lab_is_named_at_two_doors_alone() -> None:
    """An import by its name in a string is no import statement, so the strings are read as well."""
    naming = {
        room_of(path)
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("gaussiank_lab")
    }
    assert naming == DOORS


def test_files_are_short() -> None:
    files = [*FILES, *sorted(LAB.rglob("*.py"))]
    lines = {name_of(path): len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    long = {name: count for name, count in lines.items() if count > MAX_LINES}
    assert not long, f"at most {MAX_LINES} lines are wanted: {long}"


# ---------------------------------------------------------------------- the reader itself


@each(
    ("source", "rooms"),
    [
        ("import gaussiank.ddp", {"ddp"}),
        ("import gaussiank.ops.reference as reference", {"ops"}),
        ("from gaussiank import codec, ops, __version__", {"codec", "ops"}),
        ("from gaussiank import compress, Layout", {"doors", "layout"}),
        ("from gaussiank.ops import select_topk", {"ops"}),
        ("from . import ops", set()),
        ("from ..ddp import compress", {"ddp"}),
        ("from .. import ddp", {"ddp"}),
        ("from .table import COMPRESSORS", set()),
        ("def f():\n    from gaussiank.reducer import GradientReducer", {"reducer"}),
        ("import gaussiank\ndef f():\n    return gaussiank.compress(1)", {"doors"}),
        ("if TYPE_CHECKING:\n    from gaussiank.ddp import compress", set()),
        (
            "import typing\nif typing.TYPE_CHECKING:\n    import gaussiank.ddp\nelse:\n    import gaussiank.codec",
            {"codec"},
        ),
        ("import torch, numpy, gaussiank_lab.report.plots", set()),
    ],
)
def test_reader_finds_rooms(source: str, rooms: set[str]) -> None:
    assert rooms_of(LIBRARY / "compressors" / "made_up.py", source) == rooms


def test_reader_finds_other_packages() -> None:
    source = "def f():\n    import torch, rich.table\n    from gaussiank_lab.report.plots import figure_svg\n"
    found = ["torch", "rich.table", "gaussiank_lab.report.plots.figure_svg"]
    assert list(modules_of(LIBRARY / "made_up.py", source)) == found
