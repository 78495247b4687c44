"""State that survives: checkpoints written whole or not at all, verified, and resumed bit for bit."""

from gaussiank_lab.checkpoint.format import FORMS, CheckpointFolder, Form, FormName, Manifest, Place, SavedPart
from gaussiank_lab.checkpoint.saver import (
    CheckpointPlan,
    Saved,
    Saver,
    WorkerState,
    load_worker,
    random_state,
    restore_random_state,
)

from .resume import CHECKPOINTS_NAME, LENGTH, Resume, find_resume, last_usable

__all__ = [
    "CHECKPOINTS_NAME",
    "FORMS",
    "LENGTH",
    "CheckpointFolder",
    "CheckpointPlan",
    "Form",
    "FormName",
    "Manifest",
    "Place",
    "Resume",
    "Saved",
    "SavedPart",
    "Saver",
    "WorkerState",
    "find_resume",
    "last_usable",
    "load_worker",
    "random_state",
    "restore_random_state",
]
