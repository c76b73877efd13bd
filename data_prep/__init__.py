"""One script for each family of corpora; each is also `diablo-ds prepare FAMILY`."""
