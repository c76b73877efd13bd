"""Processes: who a rank is, how ranks talk, live, stop, and what they leave behind."""
