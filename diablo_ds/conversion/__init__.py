"""What becomes of an adapter: merged, compared, combined, imported, described and uploaded."""
