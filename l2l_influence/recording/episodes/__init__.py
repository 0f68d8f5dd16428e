"""Episodes: the log of a clone, the task that it is matched with, and the records of all tasks."""
