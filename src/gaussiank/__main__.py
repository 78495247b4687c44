"""Lets ``python -m gaussiank``, and so ``torchrun -m gaussiank``, run the command line, which the lab has."""

import importlib
import sys

if __name__ == "__main__":
    try:
        cli = importlib.import_module("gaussiank_lab.cli")
    except ModuleNotFoundError as error:
        if error.name != "gaussiank_lab":
            raise
        sys.exit(
            "gaussiank: the command line must be installed, and the package gaussiank-lab, which has it, is not. "
            "Run: pip install gaussiank-lab (in a clone: pip install ./lab)."
        )
    cli.main()
