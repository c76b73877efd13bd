"""Merging: base files plus an adapter become new base files, one tensor at a time."""
