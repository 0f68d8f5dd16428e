"""Applications: the command line, running a user's script under the recorder, and the demo."""
