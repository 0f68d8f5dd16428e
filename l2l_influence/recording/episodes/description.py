"""A recording in a few sentences."""

from __future__ import annotations

from ..interception.failures import Failures
from ..tasksets.board import board
from .ledger import Ledger


def describe(ledger: Ledger, failures: Failures, held_mib: float) -> str:
    """What was recorded, what could not be attributed, and the memory held."""
    return " ".join([*_sums(ledger, held_mib), *_troubles(ledger), *map(str, filter(None, (failures, board.failures)))])


def _sums(ledger: Ledger, held_mib: float) -> list[str]:
    records = ledger.records.values()
    trained = [record for record in records if record.times_trained]
    return [
        f"{len(records)} tasks in {sum(record.times_seen for record in records)} draws;",
        f"{len(trained)} of them trained the meta-parameters, in {sum(each.times_trained for each in trained)} draws;",
        f"{held_mib:.1f} MiB of task data and adapted parameters held.",
    ]


def _troubles(ledger: Ledger) -> list[str]:
    sentences = [f"{count} {text}." for text, count in ledger.remarks.items()]
    if ledger.foreign:
        sentences.append(f"{ledger.foreign.total()} forwards of unknown input were trained on.")
    if ledger.ambiguous:
        sentences.append(f"{len(ledger.ambiguous)} draws that trained fit two tasks.")
    if ledger.surplus:
        sentences.append(f"{ledger.surplus} draws that trained were of tasks beyond max_tasks.")
    if ledger.sampled:
        sentences.append(
            f"The tasks that trained are a uniform sample: a draw stands for {ledger.stands_for:.1f} of the run's."
        )
    return sentences
