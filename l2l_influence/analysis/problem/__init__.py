"""The bilevel problem of a recorded run at a given λ, built from the recording and the user's settings."""
