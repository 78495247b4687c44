from __future__ import annotations

import ast
import importlib
import importlib.metadata
import importlib.util
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from tests.each import each
from tests.imports import LIBRARY, ROOT

import gaussiank
from gaussiank import collectives, comm
from gaussiank.autotune import parse_policy

ADAPTERS = {
    f"integrations/{framework}.py" for framework in ("accelerate", "lightning", "transformers")
}  # import theirs
KERNELS = "ops/triton/"  # import Triton, which need not be there


def loaded_by(statement: str) -> list[str]:
    """Return the modules that a fresh interpreter has after a statement."""
    command = f"import sys; {statement}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True, timeout=60)
    return done.stdout.split()


@each("name", gaussiank.__all__)
def test_every_public_name_resolves_to_its_room(name: str) -> None:
    value = getattr(gaussiank, name)
    if name == "__version__":
        assert value == importlib.metadata.version("gaussiank")
        return
    assert value.__name__ == name
    assert getattr(importlib.import_module(value.__module__), name) is value
    assert vars(gaussiank)[name] is value  # the second look is a plain attribute


def test_names_are_sorted_unique_and_told_to_type_checkers() -> None:
    assert sorted(gaussiank.__all__) == sorted(set(gaussiank.__all__))
    tree = ast.parse(Path(str(gaussiank.__file__)).read_text(encoding="utf-8"))
    blocks = [node for node in tree.body if isinstance(node, ast.If)]
    told = {name.name for block in blocks for line in block.body for name in getattr(line, "names", [])}
    assert told | {"__version__"} == set(gaussiank.__all__)


def test_every_public_name_is_in_the_reference() -> None:
    pages = "\n".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs/api").glob("*.rst"))
    described = set(re.findall(r"^[.][.] auto(?:class|function):: gaussiank[.](\w+)$", pages, re.MULTILINE))
    assert set(gaussiank.__all__) - {"__version__"} == described


INTERFACES = {"AdamWarning", "Compressor", "Observer", "Schedule"}  # nobody has an object of these
MADE = [
    *(gaussiank.parse_compressor(name) for name in gaussiank.compressor_names()),
    gaussiank.Capped(gaussiank.SIDCo(mode="pareto"), 7),
    gaussiank.AdamRows(beta2=0.9),
    gaussiank.MomentumCorrection(0.8, nesterov=True),
    gaussiank.Constant(0.01),
    gaussiank.DenseStart(0.01, steps=7),
    gaussiank.Warmup.dgc(0.01, stage_steps=50),
    gaussiank.Layout(("w", "b"), (6, 2)),
    gaussiank.Metrics(step=3, kept=5),
]


def test_every_public_object_tells_its_settings(tmp_path: Path) -> None:
    """What only has settings is printed as what makes it again; what trains names its settings, and where it is."""
    for one in MADE:
        assert eval(repr(one), {name: getattr(gaussiank, name) for name in gaussiank.__all__}) == one
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        wrapped, bare = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(30, 2)), torch.nn.Linear(30, 2)
        optimizer = torch.optim.SGD(bare.parameters())
        trains = [
            gaussiank.compress(wrapped, density=0.25, clip_norm=2.0),
            gaussiank.LocalSteps(bare, optimizer, sync_every=7, offload="cpu", outer_optimizer=torch.optim.SGD),
            gaussiank.ErrorFeedback({"w": 30}),
            gaussiank.SparseGradient(torch.tensor([3], dtype=torch.int32), torch.tensor([2.0]), numel=5),
        ]
    finally:
        dist.destroy_process_group()
    same = "on_nonfinite=propagate, collective=AllGather(slack=1.25, spread={}, ask=False), wire={}, "
    assert list(map(repr, trains)) == [
        "Compression(density=Constant(density=0.25), compressor=TopK(), scope=bucket, clip_norm=2.0, "
        + same.format(1.02, "rice+bf16-rice")
        + "parameters=2, numel=62, step=0)",
        "LocalSteps(sync_every=7, density=Constant(density=0.0625), compressor=ChunkTopK(chunk=4096), "
        + same.format(1.005, "rice+2bit")
        + "scope=fragment, decay=1.0, fragments=1, sync_delay=0, buffers=average, on_outlier=raise, check_every=10, "
        "outer_optimizer=SGD, offload=cpu, parameters=2, numel=62, steps=0)",
        "ErrorFeedback(1 parameters, numel=30, momentum=None, decay=1.0, world_size=1)",
        "SparseGradient(indices=tensor([3], dtype=torch.int32), values=tensor([2.]), numel=5, row=None)",
    ]
    classes = {name for name in gaussiank.__all__ if inspect.isclass(getattr(gaussiank, name))} - INTERFACES
    shown = {name for name in classes if any(isinstance(one, getattr(gaussiank, name)) for one in (*MADE, *trains))}
    assert shown == classes


def test_unknown_name() -> None:
    with pytest.raises(AttributeError, match=r"^module 'gaussiank' has no attribute 'TopKK'$"):
        gaussiank.TopKK  # noqa: B018  looking it up is what raises


def test_package_alone_loads_no_torch() -> None:
    loaded = loaded_by("import gaussiank; gaussiank.__version__")
    assert "gaussiank" in loaded
    assert [name for name in loaded if name.startswith(("torch", "numpy", "gaussiank.", "gaussiank_lab"))] == []


@pytest.mark.parametrize("room", ["schedule", "layout", "metrics", "cost"])
def test_rooms_without_tensors_load_no_torch(room: str) -> None:
    assert "torch" not in loaded_by(f"import gaussiank.{room}")


def test_compressors_load_neither_hook_nor_collectives() -> None:
    loaded = loaded_by("from gaussiank import TopK")
    assert "gaussiank.compressors.topk" in loaded
    assert [
        name for name in loaded if name.startswith(("gaussiank.doors", "gaussiank.ddp", "gaussiank.collectives"))
    ] == []


def test_rooms_are_found_by_name_and_listed() -> None:
    code = (
        "import gaussiank; print(gaussiank.ops.backends().active, gaussiank.reshard.sources(0, 1, 2), dir(gaussiank))"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "(0, 1)" in printed
    assert "'compress'" in printed
    assert "'ops'" in printed


def test_what_has_left_the_collectives_is_found_with_a_warning() -> None:
    for name, place in collectives._MOVED.items():
        with pytest.warns(
            DeprecationWarning, match=rf"^gaussiank.collectives.{name} has moved. Use gaussiank.{place}."
        ):
            found = getattr(collectives, name)
        room, new = place.split(".")
        assert found is getattr(importlib.import_module(f"gaussiank.{room}"), new)
    with pytest.warns(DeprecationWarning, match=r"Use gaussiank\.autotune\.parse_policy\.$"):
        assert collectives.parse_collective("auto:mbit=3") == parse_policy("auto:mbit=3")
    with pytest.warns(DeprecationWarning, match=r"^comm.ring_bytes is called all_reduce_bytes\. Use that name\.$"):
        assert comm.ring_bytes is comm.all_reduce_bytes
    with pytest.raises(AttributeError, match=r"^module 'gaussiank.collectives' has no attribute 'Automatic'$"):
        collectives.Automatic  # noqa: B018  looking it up is what raises


WITHOUT_LAB = "import tests.alone, gaussiank; "
MISSING = (
    "gaussiank.{} has moved to the package gaussiank-lab, which is not installed. "
    "Run: pip install gaussiank-lab (in a clone: pip install ./lab)."
)


@pytest.mark.parametrize("name", ["Recorder", "sim", "theory"])
def test_what_has_gone_to_the_lab_names_the_package_to_install(name: str) -> None:
    assert name not in (*gaussiank.__all__, *dir(gaussiank))
    for statement in (f"gaussiank.{name}", f"from gaussiank import {name}"):
        command = [sys.executable, "-c", WITHOUT_LAB + statement]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 1
        assert done.stderr.endswith(f"ModuleNotFoundError: {MISSING.format(name)}\n")


def test_the_command_with_the_library_alone_says_what_to_install() -> None:
    program = "import tests.alone, runpy; runpy.run_module('gaussiank', run_name='__main__', alter_sys=True)"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == (
        "gaussiank: the command line must be installed, and the package gaussiank-lab, which has it, is not. "
        "Run: pip install gaussiank-lab (in a clone: pip install ./lab).\n"
    )


def test_every_module_of_the_library_loads_without_the_lab() -> None:
    modules = [
        ".".join(path.relative_to(LIBRARY.parent).with_suffix("").parts)
        for path in sorted(LIBRARY.rglob("*.py"))
        if path.name not in ("__init__.py", "__main__.py")
        and path.relative_to(LIBRARY).as_posix() not in ADAPTERS
        and (importlib.util.find_spec("triton") or not path.relative_to(LIBRARY).as_posix().startswith(KERNELS))
    ]
    program = f"import importlib, tests.alone\nfor name in {modules}: importlib.import_module(name)"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, timeout=120)


def test_the_release_stands_in_one_place() -> None:
    library, lab = ((ROOT / name).read_text(encoding="utf-8") for name in ("pyproject.toml", "lab/pyproject.toml"))
    assert "gaussiank.__version__" in library
    for text in (library, lab, *((ROOT / name).read_text(encoding="utf-8") for name in ("setup.py", "lab/setup.py"))):
        assert gaussiank.__version__ not in text
    assert re.findall(r'^  "([a-z]+)>=', library, re.MULTILINE) == ["torch", "numpy"]
    assert (ROOT / "LICENSE").read_bytes() == (ROOT / "lab/LICENSE").read_bytes()
