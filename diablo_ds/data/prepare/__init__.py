"""Raw corpora to prepared datasets: tokenised, deduplicated, with a record of what was done."""
