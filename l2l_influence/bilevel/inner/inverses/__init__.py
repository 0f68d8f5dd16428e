"""Inverses of the inner Hessian, one file each."""
