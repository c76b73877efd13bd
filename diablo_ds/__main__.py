"""`python -m diablo_ds`, the same as the command `diablo-ds`."""

from diablo_ds.cli.main import entry_point

if __name__ == "__main__":
    entry_point()
