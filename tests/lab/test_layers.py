"""What must not need torch in the lab: theory, the cost model, and whatever reads records."""

from __future__ import annotations

from tests.each import each
from tests.imports import LAB, PACKAGES, file_of, modules_of, name_of, room_of

READERS = [
    *("report/plots.py", "report/page.py", "report/records.py", "report/summary.py"),
    *("bench/rows.py", "bench/tables.py", "bench/plots.py"),
    *("study/study.py", "study/report.py", "study/plots.py"),
]


def test_theory_and_simulation_know_neither_torch_nor_the_rest() -> None:
    wrong = [
        f"{name_of(path)} -> {module}"
        for path in sorted(LAB.rglob("*.py"))
        if room_of(path) in ("theory", "sim")
        for module in modules_of(path)
        if (module.split(".")[0] in ("torch", "gaussiank") and not module.startswith("gaussiank.cost"))
        or (module.startswith("gaussiank_lab.") and module.split(".")[1] not in ("theory", "sim"))
    ]
    assert not wrong, f"theory and sim must import neither torch nor other rooms: {wrong}"


@each("name", READERS)
def test_what_reads_records_needs_neither_torch_nor_the_hook(name: str) -> None:
    roots = [folder / "__init__.py" for folder in PACKAGES.values()]  # they import on first use
    seen, todo, wrong = set(), [(LAB / name, name)], []
    while todo:
        path, route = todo.pop()
        seen.add(path)
        if (package := path.parent / "__init__.py") not in (*seen, *roots):  # runs before the file does
            todo.append((package, f"{route} -> {name_of(package)}"))
        for module in modules_of(path):
            if module.split(".")[0] == "torch" or module.startswith(("gaussiank.ddp", "gaussiank.doors")):
                wrong.append(f"{route} -> {module}")
            elif (found := file_of(module)) and found not in seen:
                todo.append((found, f"{route} -> {name_of(found)}"))
    assert not wrong, f"plots and reports read records from disk alone: {wrong}"
