"""Data: text to tokens, examples to micro batches."""
