"""Inner solutions defined by gradient steps, and the rules of such steps."""
