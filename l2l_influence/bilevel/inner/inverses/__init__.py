"""Inverses of the inner Hessian, one file per kind."""
