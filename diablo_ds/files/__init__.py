"""Files: written whole or not at all, read strictly, trusted only where they may be."""
