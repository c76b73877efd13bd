"""The method: block-diagonal deltas of frozen linear layers. Needs torch alone."""
