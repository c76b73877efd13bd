"""The base model: found, built, looked into; its loss, attention and recomputation."""
