"""Run the cells of a notebook in order, without Jupyter: an error in one is an error. ``make examples`` runs it.

With ``--write`` what cells print and draw is put into it:

    python scripts/run_notebook.py examples/gradients.ipynb [--write]
"""

from __future__ import annotations

import argparse
import base64
import io
import json
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import matplotlib as mpl


def outputs_of(printed: str) -> list[dict[str, Any]]:
    """Return what a cell printed, and the figures that it has left open, as a notebook holds them."""
    from matplotlib import pyplot

    found: list[dict[str, Any]] = []
    if printed:
        found.append({"name": "stdout", "output_type": "stream", "text": printed.splitlines(keepends=True)})
    for number in pyplot.get_fignums():
        picture = io.BytesIO()
        pyplot.figure(number).savefig(picture, format="png", dpi=60, metadata={"Software": None})
        data = {"image/png": base64.b64encode(picture.getvalue()).decode(), "text/plain": ["<Figure>"]}
        found.append({"data": data, "metadata": {}, "output_type": "display_data"})
    pyplot.close("all")
    return found


def run(path: Path) -> dict[str, Any]:
    """Return the notebook with what its cells print and draw now."""
    mpl.use("Agg")
    notebook: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    names: dict[str, Any] = {"__name__": "__main__"}
    for number, cell in enumerate(one for one in notebook["cells"] if one["cell_type"] == "code"):
        with redirect_stdout(io.StringIO()) as printed:
            exec(compile("".join(cell["source"]), f"{path.name}, cell {number + 1}", "exec"), names)
        cell["outputs"], cell["execution_count"] = outputs_of(printed.getvalue()), number + 1
    return notebook


def main() -> None:
    parser = argparse.ArgumentParser(description="Run the cells of a notebook in order.")
    parser.add_argument("notebook", type=Path)
    parser.add_argument("--write", action="store_true", help="put what cells print and draw into the file")
    chosen = parser.parse_args()
    notebook = run(chosen.notebook)
    if chosen.write:
        chosen.notebook.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    for cell in notebook["cells"]:
        for output in cell.get("outputs", []):
            print("".join(output.get("text", ["(a figure)\n"])), end="")


if __name__ == "__main__":
    main()
