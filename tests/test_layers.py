"""Imports only go down: every file under src is read, none is run."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = "gaussiank"
SRC = Path(__file__).parent.parent / "src" / PACKAGE
LEVELS = [
    {"durable", "environment", "sparse", "spec", "schedule", "layout", "metrics", "theory", "sim"},
    {"ops"},
    {"dcp_metadata", "momentum", "observer"},
    {"compressors", "codec", "feedback", "reshard"},
    {"collectives"},
    {"checkpoint", "reducer"},
    {"ddp"},
    {"lab"},
    {"__main__"},
]
LEVEL = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}
READERS = [
    *("lab/plots.py", "lab/report.py", "lab/records.py", "lab/summary.py", "lab/compare.py", "lab/watch/server.py"),
    *("lab/bench/rows.py", "lab/bench/opstable.py", "lab/bench/opsplot.py"),
    *("lab/study/study.py", "lab/study/report.py", "lab/study/figures.py", "lab/study/summary.py"),
]
MAX_LINES = 600

FILES = sorted(SRC.rglob("*.py"))


def name_of(path: Path) -> str:
    """Return the file as a reader sees it: ``compressors/topk.py``."""
    return path.relative_to(SRC).as_posix()


def room_of(path: Path) -> str:
    return path.relative_to(SRC).parts[0].removesuffix(".py")


def is_type_checking(node: ast.If) -> bool:
    return "TYPE_CHECKING" in {getattr(part, "id", getattr(part, "attr", "")) for part in ast.walk(node.test)}


def running(node: ast.AST) -> Iterator[ast.AST]:
    """Walk what can run: everything but the bodies of ``if TYPE_CHECKING``."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and is_type_checking(child):
            for other in child.orelse:
                yield other
                yield from running(other)
        else:
            yield child
            yield from running(child)


def lazy_rooms() -> dict[str, str]:
    """Read name -> room from the package's own ``__init__``."""
    tree = ast.parse((SRC / "__init__.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "_ROOMS":
            rooms: dict[str, str] = ast.literal_eval(node.value)
            return rooms
    raise AssertionError("gaussiank/__init__.py must name its rooms in _ROOMS")


LAZY = lazy_rooms()


def modules_of(path: Path, source: str) -> Iterator[str]:
    """Yield the full name of each module that a file imports, anywhere in it, as far as the text tells."""
    package = [PACKAGE, *path.relative_to(SRC).parts[:-1]]
    for node in running(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                if module == PACKAGE:  # a room, or a name that __init__ looks up in one
                    yield f"{PACKAGE}.{LAZY.get(alias.name, alias.name)}"
                else:
                    yield f"{module}.{alias.name}" if module.startswith(PACKAGE) else module
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == PACKAGE:
            yield f"{PACKAGE}.{LAZY.get(node.attr, node.attr)}"


def rooms_of(path: Path, source: str) -> set[str]:
    """Return the other rooms that a file imports from."""
    parts = [module.split(".") for module in modules_of(path, source)]
    rooms = {names[1] for names in parts if names[0] == PACKAGE and len(names) > 1}
    return {room for room in rooms if not room.startswith("__")} - {room_of(path)}


def arrows() -> list[tuple[str, str, str]]:
    """Return (file, its room, room it imports from) for the whole package."""
    return [
        (name_of(path), room_of(path), room)
        for path in FILES
        if path != SRC / "__init__.py"
        for room in sorted(rooms_of(path, path.read_text(encoding="utf-8")))
    ]


def test_every_room_has_a_level() -> None:
    homeless = sorted({room_of(path) for path in FILES} - {"__init__"} - set(LEVEL))
    assert not homeless, f"give these rooms a level: {homeless}"
    unknown = sorted({f"{name} -> {room}" for name, _, room in arrows() if room not in LEVEL})
    assert not unknown, f"no such room: {unknown}"


def test_imports_only_go_down() -> None:
    upward = [f"{name} -> {room}" for name, own, room in arrows() if LEVEL[room] > LEVEL[own]]
    assert not upward, f"imports must only go down: {upward}"


def test_rooms_of_one_level_do_not_know_each_other() -> None:
    sideways = [f"{name} -> {room}" for name, own, room in arrows() if LEVEL[room] == LEVEL[own]]
    assert not sideways, f"rooms of one level must not import each other: {sideways}"


def test_only_the_lab_uses_theory_and_simulation() -> None:
    wrong = [f"{name} -> {room}" for name, own, room in arrows() if room in ("theory", "sim") and own != "lab"]
    assert not wrong, f"only lab may import theory and sim: {wrong}"


def test_theory_and_simulation_need_no_torch() -> None:
    wrong = [
        f"{name_of(path)} -> {module}"
        for path in FILES
        if room_of(path) in ("theory", "sim")
        for module in modules_of(path, path.read_text(encoding="utf-8"))
        if module.split(".")[0] == "torch"
    ]
    assert not wrong, f"theory and sim must not import torch: {wrong}"


def file_of(module: str) -> Path | None:
    """Return the file behind a module of ours, or behind the module that a name stands in."""
    parts = module.split(".")[1:]
    for end in (len(parts), len(parts) - 1):
        base = SRC.joinpath(*parts[:end])
        for path in (base.with_suffix(".py"), base / "__init__.py"):
            if end and path.is_file():
                return path
    return None


@pytest.mark.parametrize("name", READERS)
def test_what_reads_records_needs_neither_torch_nor_the_hook(name: str) -> None:
    seen, todo, wrong = set(), [(SRC / name, name)], []
    while todo:
        path, route = todo.pop()
        seen.add(path)
        if (package := path.parent / "__init__.py") not in (*seen, SRC / "__init__.py"):  # runs before the file does
            todo.append((package, f"{route} -> {name_of(package)}"))
        for module in modules_of(path, path.read_text(encoding="utf-8")):
            if module.split(".")[0] == "torch" or module.startswith(f"{PACKAGE}.hook"):
                wrong.append(f"{route} -> {module}")
            elif module.startswith(PACKAGE) and (found := file_of(module)) and found not in seen:
                todo.append((found, f"{route} -> {name_of(found)}"))
    assert not wrong, f"plots and reports read records from disk alone: {wrong}"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_files_are_short(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= MAX_LINES, f"{name_of(path)} has {lines} lines, at most {MAX_LINES} are wanted: split it"


# ---------------------------------------------------------------------- the reader itself


@pytest.mark.parametrize(
    ("source", "rooms"),
    [
        ("import gaussiank.ddp", {"ddp"}),
        ("import gaussiank.lab.plots as plots", {"lab"}),
        ("from gaussiank import codec, ops, __version__", {"codec", "ops"}),
        ("from gaussiank import compress, Layout", {"ddp", "layout"}),
        ("from gaussiank.ops import select_topk", {"ops"}),
        ("from . import ops", set()),
        ("from ..ddp import compress", {"ddp"}),
        ("from .. import ddp", {"ddp"}),
        ("from .table import COMPRESSORS", set()),
        ("def f():\n    from gaussiank.reducer import GradientReducer", {"reducer"}),
        ("import gaussiank\ndef f():\n    return gaussiank.compress(1)", {"ddp"}),
        ("if TYPE_CHECKING:\n    from gaussiank.ddp import compress", set()),
        (
            "import typing\nif typing.TYPE_CHECKING:\n    import gaussiank.ddp\nelse:\n    import gaussiank.lab",
            {"lab"},
        ),
        ("import torch, numpy", set()),
    ],
)
def test_reader_finds_rooms(source: str, rooms: set[str]) -> None:
    assert rooms_of(SRC / "compressors" / "made_up.py", source) == rooms
