"""Text to token ids: templates, conversations, tokenizers."""
