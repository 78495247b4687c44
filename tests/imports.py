"""Reads what a file of either package imports, from its text; nothing is run."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
LIBRARY = Path(str(getattr(importlib.util.find_spec("gaussiank"), "origin", ROOT))).parent  # a wheel, or the checkout
LAB = ROOT / "lab" / "gaussiank_lab"
PACKAGES = {"gaussiank": LIBRARY, "gaussiank_lab": LAB}


def name_of(path: Path) -> str:
    """Return the file as a reader sees it: ``gaussiank/compressors/topk.py``."""
    return path.relative_to(package_of(path).parent).as_posix()


def package_of(path: Path) -> Path:
    return next(folder for folder in PACKAGES.values() if path.is_relative_to(folder))


def room_of(path: Path) -> str:
    return path.relative_to(package_of(path)).parts[0].removesuffix(".py")


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


def table(name: str) -> dict[str, str]:
    """Read a literal that the library's own ``__init__`` assigns to a name."""
    tree = ast.parse((LIBRARY / "__init__.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == name:
            value = ast.literal_eval(node.value)
            return dict(value) if isinstance(value, dict) else {entry: entry for entry in value}
    raise AssertionError(f"gaussiank/__init__.py must assign a literal to {name}")


LAZY = table("_ROOMS")


def modules_of(path: Path, source: str | None = None) -> Iterator[str]:
    """Yield the full name of each module that a file imports, anywhere in it, as far as the text tells."""
    folder = package_of(path)
    package = [folder.name, *path.relative_to(folder).parts[:-1]]
    for node in running(ast.parse(path.read_text(encoding="utf-8") if source is None else source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                if module == "gaussiank":  # a room, or a name that __init__ looks up in one
                    yield f"gaussiank.{LAZY.get(alias.name, alias.name)}"
                else:
                    yield f"{module}.{alias.name}" if module.split(".")[0] in PACKAGES else module
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "gaussiank":
            yield f"gaussiank.{LAZY.get(node.attr, node.attr)}"


def file_of(module: str) -> Path | None:
    """Return the file behind a module of ours, or behind the module that a name stands in."""
    package, *parts = module.split(".")
    for end in (len(parts), len(parts) - 1):
        base = PACKAGES[package].joinpath(*parts[:end]) if package in PACKAGES and end > 0 else None
        for path in (base.with_suffix(".py"), base / "__init__.py") if base else ():
            if path.is_file():
                return path
    return None
