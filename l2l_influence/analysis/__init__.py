"""Analysis of a recorded run: the bilevel problem at a given λ, its items, estimators of their influence, and results."""
