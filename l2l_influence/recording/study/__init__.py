"""Studies: recordings as users hold, save, load and merge them."""
