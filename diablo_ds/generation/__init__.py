"""Text by a base model with an adapter: prompts as trained, answers piece by piece."""
