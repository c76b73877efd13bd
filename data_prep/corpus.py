"""Tokenise a corpus: this script under the name of each family, as a link to it.

python data_prep/math.py --source gsm8k/train.jsonl --output prepared/math

is the same as `diablo-ds prepare math ...`; so are auto.py, code.py, commonsense.py and safety.py.
"""

import sys

# A script's folder comes first on the path: math.py and code.py here would hide Python's own.
sys.path[:] = [folder for folder in sys.path if not folder.endswith("data_prep")]

from pathlib import Path  # noqa: E402

from diablo_ds.cli.console import run_command  # noqa: E402
from diablo_ds.cli.prepare import prepare  # noqa: E402

if __name__ == "__main__":
    run_command(prepare.commands.get(Path(__file__).stem, prepare))
