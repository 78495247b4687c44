"""Adapters for trainers of others: ``transformers``, ``accelerate``, ``lightning``; each imports its framework itself.

Each takes what ``gaussiank.compress`` takes, gives it the model that the framework has wrapped, and saves and loads
every worker's residuals with the framework's checkpoints. See docs/frameworks.md.
"""
