"""Items whose influence can be asked about: tasks, query samples, support samples, and groups of these."""
