"""Launching: cluster to command line, ranks under guard, faults survived, SLURM."""
