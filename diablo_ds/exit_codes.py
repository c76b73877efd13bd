"""Exit codes that a launcher has to tell apart; any other number is a failure worth a restart."""

EXIT_USER_ERROR = 2
"""A wrong setting or input: the same command fails again."""
EXIT_STOPPED = 85
"""Asked to stop, and every finished step is saved: the same command goes on from there."""
