"""Which estimator is how faithful: every one held against re-optimisation without what was removed.

``python -m benchmarks estimators`` makes small float64 problems (:mod:`.worlds`), re-optimises them without tasks,
samples and halves of the tasks (:mod:`.truth`, :mod:`.retraining`), and measures how well each estimator predicts what
that does (:mod:`.fidelity`), what it costs (:mod:`.cost`), and what the inverses of the inner Hessian are worth
(:mod:`.inverses`). :mod:`.run` keeps what was measured, :mod:`.tables` shows it.
"""
