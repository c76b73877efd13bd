"""The script that DeepSpeed's launcher starts on every rank.

deepspeed launch/train.py --ds_config ds_configs/zero3.json
"""

from diablo_ds.cli import train
from diablo_ds.console import run

if __name__ == "__main__":
    run(train)
