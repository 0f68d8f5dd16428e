"""Ground truth of removals by retraining: designs of removals, retraining in processes, and the comparison."""
