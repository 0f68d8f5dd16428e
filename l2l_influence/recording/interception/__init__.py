"""Interception of learn2learn and torch calls while a loop is recorded."""
