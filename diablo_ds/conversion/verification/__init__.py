"""Verifying a merge: whether a merged model is its base plus the adapter, rounded once."""
