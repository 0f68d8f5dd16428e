"""Interception: wrappers around learn2learn's and torch's functions, which report the calls to the recorders."""
