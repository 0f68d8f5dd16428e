"""Analysis of a recorded run: its bilevel problem at a given λ, items, estimators of their influence, and results."""
