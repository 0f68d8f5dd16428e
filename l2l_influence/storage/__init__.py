"""The only code that writes files: atomic replacement, content fingerprints, manifests and tensor files."""
