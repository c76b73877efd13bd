"""The script that DeepSpeed's launcher starts on every rank of an evaluation.

deepspeed launch/evaluate.py --task gsm8k --data gsm8k=test.jsonl --adapter runs/mine --output out
"""

from diablo_ds.launcher.rank_start import main

if __name__ == "__main__":
    main("evaluate")
