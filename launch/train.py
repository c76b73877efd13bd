"""The script that DeepSpeed's launcher starts on every rank.

deepspeed launch/train.py --ds_config ds_configs/zero3.json
"""

from diablo_ds.launcher.rank_start import main

if __name__ == "__main__":
    main()
