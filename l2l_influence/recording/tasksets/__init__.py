"""Tasksets: the batches that they serve, the content of a batch, and how to read a task again."""
