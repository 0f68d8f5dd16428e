"""Inner solutions defined by gradient steps, one file a rule."""
