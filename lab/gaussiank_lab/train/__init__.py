"""Training: settings, a step, a run of several methods on several workers."""
