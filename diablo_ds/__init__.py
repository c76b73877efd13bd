"""DiaBlo fine-tuning with DeepSpeed: train only the diagonal blocks of chosen weight matrices."""

__version__ = "0.1.0"
