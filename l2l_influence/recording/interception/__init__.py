"""Interception: learn2learn's and torch's methods are wrapped, and what they do is told to the recorders."""
