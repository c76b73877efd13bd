"""Run configs: every setting of a run, checked; JSON and command lines in and out."""
