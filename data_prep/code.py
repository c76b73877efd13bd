"""Tokenise CodeAlpaca, MBPP or CodeFeedback.

python data_prep/code.py --source code_alpaca_20k.json --output prepared/code
"""

import sys

# A script's folder comes first on the path: math.py and code.py here would hide Python's own.
sys.path[:] = [folder for folder in sys.path if not folder.endswith("data_prep")]

from diablo_ds.cli.console import run_command  # noqa: E402
from diablo_ds.cli.prepare import prepare  # noqa: E402

if __name__ == "__main__":
    run_command(prepare.commands["code"])
