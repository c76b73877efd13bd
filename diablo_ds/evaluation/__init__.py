"""Answers to "did it help?": tasks, prompts, judges and statistics."""
