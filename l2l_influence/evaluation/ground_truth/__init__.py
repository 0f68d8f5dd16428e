"""Ground truth by retraining: remove items, train again, and compare."""
