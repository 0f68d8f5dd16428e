"""Tasksets as the recorder sees them: served batches, their content, and how to read a task again."""
