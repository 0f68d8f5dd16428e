"""How well scores predict retraining: every estimator and baseline, on real data, against training again.

``python -m benchmarks fidelity`` trains learners (:mod:`.recipes`), takes tasks and samples away and trains again
(:mod:`.training`, :mod:`.truths`), and holds against that what the hooks and the baselines say (:mod:`.estimators`,
:mod:`.figures`). :mod:`.run` keeps what was measured, :mod:`.tables` and :mod:`.aims` show it.
"""
