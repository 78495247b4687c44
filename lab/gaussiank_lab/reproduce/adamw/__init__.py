"""Sparse exchange under AdamW, at every step and every so many: simulated workers in one process, rows, figures."""
