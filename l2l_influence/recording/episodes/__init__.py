"""Episodes: what one clone of a learner was fed, how it adapted, and which task that was."""
