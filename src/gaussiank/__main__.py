"""Lets ``python -m gaussiank``, and so ``torchrun -m gaussiank``, run the command line."""

from gaussiank.lab.cli import main

if __name__ == "__main__":
    main()
