"""Files: written completely or not at all, read strictly, trusted only where they may be."""
