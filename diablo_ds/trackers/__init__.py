"""Trackers of other packages beside TensorBoard, each in a process that no step waits for."""
