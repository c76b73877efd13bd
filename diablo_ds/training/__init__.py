"""A run from start to end: inputs, steps, checkpoints, reports."""
