"""Benchmarks that a user can repeat: each one measures in a single process, and writes rows in long form."""
