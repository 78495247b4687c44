"""A framework that is missing or too old, and what all adapters share."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

from gaussiank.integrations import require_version

ROOT = Path(__file__).parent.parent.parent


def test_a_framework_that_is_missing_or_too_old_is_told_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ImportError, match=r"^nosuch must be installed, got none\. Run: pip install 'nosuch>=5\.0'\.$"):
        require_version("nosuch", "5.0")
    monkeypatch.setattr(importlib.metadata, "version", lambda _: "4.57.1")
    with pytest.raises(ImportError, match=r"^transformers must be at least 5\.0, got 4\.57\.1\. Run: pip install 't"):
        require_version("transformers", "5.0")
    monkeypatch.setattr(importlib.metadata, "version", lambda _: "5.0.0rc1+local.7")
    require_version("transformers", "5.0")


def test_each_adapter_asks_before_it_imports_and_nobody_else_imports_a_framework() -> None:
    program = """if True:
        import importlib, importlib.metadata, sys
        import gaussiank, gaussiank.integrations, gaussiank.doors, gaussiank.local
        assert not {"transformers", "accelerate", "lightning"} & set(sys.modules)
        importlib.metadata.version = lambda _: "0.1"
        for name in ("transformers", "accelerate", "lightning"):
            try:
                importlib.import_module(f"gaussiank.integrations.{name}")
            except ImportError as error:
                print(error)
    """
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert [line.partition(", got")[0] for line in done.stdout.splitlines()] == [
        "transformers must be at least 4.47",
        "accelerate must be at least 1.1",
        "lightning must be at least 2.1",
    ]
