"""Public corpora as they are: finding and reading files, and what their rows mean."""
