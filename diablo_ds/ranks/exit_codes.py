"""Exit codes that a launcher has to tell apart; any other number is a failure worth a restart."""

EXIT_USER_ERROR = 2
"""A wrong setting or input: the same command fails again."""
EXIT_PORT_IN_USE = 98
"""The master port was taken meanwhile, or a stranger came there: worth an attempt at another."""
EXIT_STOPPED = 85
"""Asked to stop, and every finished step is saved: the same command continues from there."""
