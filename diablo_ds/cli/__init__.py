"""The command line: options to dataclasses, one call each."""
