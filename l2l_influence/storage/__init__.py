"""The only code that writes files: atomic writes, manifests, digests, tensor files, score matrices, cached outcomes.

It takes tensors, JSON-able dicts and paths, and knows nothing of recordings or estimators. To write a file, use
:mod:`.atomic`; to describe a folder, :class:`.manifest.Manifest`; to recognise content, :mod:`.fingerprints`.
"""
