"""Results: rows of scores and score matrices."""
