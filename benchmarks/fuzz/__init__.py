"""Fuzzing of every reader of files: whatever a file holds, a result or an error for the user."""
