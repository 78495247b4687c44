"""State that survives: checkpoints written whole or not at all, verified, and resumed bit for bit."""

from .folder import CheckpointFolder, Place
from .forms import FORMS, Form, FormName
from .manifest import Manifest, Part
from .random_state import random_state, restore_random_state
from .resume import CHECKPOINTS_NAME, LENGTH, Resume, find_resume, last_usable
from .saver import CheckpointPlan, Saved, Saver
from .worker_state import WorkerState, load_worker

__all__ = [
    "CHECKPOINTS_NAME",
    "FORMS",
    "LENGTH",
    "CheckpointFolder",
    "CheckpointPlan",
    "Form",
    "FormName",
    "Manifest",
    "Part",
    "Place",
    "Resume",
    "Saved",
    "Saver",
    "WorkerState",
    "find_resume",
    "last_usable",
    "load_worker",
    "random_state",
    "restore_random_state",
]
