"""Every kind of loop, every way in: the same bits as without, and one recording."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import pytest
from torch import nn

from l2l_influence.recording import record, recording_of

from .identity import assert_same, everything, seed
from .loops import DROP_INS, LOOPS, PLAIN, Kit, plus_plus
from .manual import told

each_loop = pytest.mark.parametrize("loop", LOOPS)


class Outcome(NamedTuple):
    """``state``: what a loop leaves behind; ``seen``: what was recorded of each of its learners."""

    state: dict[str, Any]
    seen: list[Any]


@lru_cache
def run(loop: str, kit: Kit, watched: bool) -> Outcome:
    if not watched:
        return outcome(loop, kit)
    with record() as study:
        found = outcome(loop, kit)
    assert len(study.learners) == len(found.seen)
    return found


def outcome(loop: str, kit: Kit) -> Outcome:
    seed()
    ran = LOOPS[loop](kit)
    learners = ran.maml if isinstance(ran.maml, nn.ModuleList) else [ran.maml]
    return Outcome(everything(ran), [facts(learner) for learner in learners])


def facts(learner: Any) -> list[dict[str, Any]]:
    """All that a recording tells, in a form that can be compared."""
    tasks = recording_of(learner).tasks
    first = min((task.taskset for task in tasks), default=0)
    return [{**told(task), "taskset": task.taskset - first} for task in tasks]


@each_loop
@pytest.mark.parametrize(("kit", "watched"), [(PLAIN, True), (DROP_INS, False)], ids=["record", "drop-ins"])
def test_the_same_bits(loop: str, kit: Kit, watched: bool) -> None:
    plain = run(loop, PLAIN, False)
    assert_same(plain.state, run(loop, kit, watched).state)
    assert plain.state["printed"]
    assert not any(plain.seen)


@each_loop
@pytest.mark.parametrize("kit", [PLAIN, DROP_INS], ids=["learn2learn's classes", "drop-ins inside record"])
def test_one_recording(loop: str, kit: Kit) -> None:
    drop_ins = run(loop, DROP_INS, False)
    assert run(loop, kit, True).seen == drop_ins.seen
    assert all(any(task["times_trained"] for task in tasks) for tasks in drop_ins.seen)


def test_the_same_bits_with_a_learner_like_maml_plus_plus() -> None:
    seed()
    plain = everything(plus_plus(PLAIN))
    seed()
    with record():
        recorded = everything(plus_plus(PLAIN))
    assert_same(plain, recorded)
