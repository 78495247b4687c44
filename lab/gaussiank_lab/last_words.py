"""What a failing worker leaves for its launcher: one sentence, which torchrun shows last in place of a traceback."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path


def leave(sentence: str) -> None:
    """Write a sentence where torch's launchers look for the cause of a failure; without a launcher, do nothing.

    It is the format of torch's own error files without their traceback, which the worker has printed already.
    """
    named = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if not named:
        return
    content = {"message": {"message": sentence, "extraInfo": {"timestamp": str(int(time.time()))}}}
    unfinished = Path(f"{named}.{os.getpid()}")
    unfinished.write_text(json.dumps(content), encoding="utf-8")
    unfinished.replace(named)  # a launcher that finds half a file fails itself
