"""What the server imports that workers are forked from; nobody else imports it.

A worker that imports torch, and with its first DDP model torch._dynamo, for itself takes three seconds of a processor.
"""

import gc
import importlib
import os

from gaussiank_lab.launch import end_with

for _name in ("torch._dynamo", "gaussiank_lab.train.run"):
    importlib.import_module(_name)
gc.freeze()  # what they consist of stays: workers share it, and no collection looks through it
end_with(os.getppid())  # the workers end with the server, as it does with the process that started it
