"""A study: the learners whose training was recorded, and what can be told by hand of those that could not be."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from learn2learn.data import Taskset
from torch import Tensor, nn

from ...errors import RecordingError
from ..episodes.manual import ToldEpisode, tell
from ..episodes.task import RecordedTask
from ..interception import observe
from ..interception.observe import recording_of
from ..learners.base import model_of, require_learner
from ..options import RecordingOptions
from ..recorder import Recording
from . import storage
from .loaded import LoadedRecording
from .merging import merged
from .rebuilding import MODEL, load_weights, rebuilt, settings_of, weights_of
from .uncopied import Uncopied

BODY = "body"
"""What names of the body's weights in the files begin with."""


class Study(Uncopied):
    """What `record` yields: the learners that were cloned inside, and their recordings.

    Attributes:
        options: what to keep, for learners that have no recording yet.
        learners: those that were cloned, in order of first clone; kept alive with the study.
        remarks: what no learner's recording can tell, with how often it happened.
        between_steps: called in the loop's own thread whenever a clone is about to be made; or None.
    """

    def __init__(self, options: RecordingOptions | None = None) -> None:
        self.options = options or RecordingOptions()
        self.learners: list[nn.Module] = []
        self.remarks: Counter[str] = Counter()
        self.between_steps: Callable[[], None] | None = None

    @property
    def learner(self) -> Any:
        """The learner that trained tasks.

        Raises:
            RecordingError: there are several, or none was cloned.
        """
        trained = [learner for learner in self.learners if _trained(learner)] or self.learners
        if len(trained) != 1:
            raise RecordingError(self._why_not_one(trained))
        return trained[0]

    @property
    def recording(self) -> Recording:
        """The recording of `learner`."""
        return recording_of(self.learner)

    @property
    def tasks(self) -> list[RecordedTask]:
        """All tasks that `learner` was fed; see `Recording.tasks`."""
        return self.recording.tasks

    def training_tasks(self, tasks: Taskset | None = None) -> list[RecordedTask]:
        """The tasks that `learner` was trained on; see `Recording.training_tasks`, also for what it raises."""
        return self.recording.training_tasks(tasks)

    def add_episode(
        self,
        *,
        learner: nn.Module,
        support: tuple[Tensor, Tensor],
        query: tuple[Tensor, Tensor],
        lr: float,
        steps: int,
        first_order: bool = False,
        key: int | None = None,
    ) -> None:
        """Enter one draw of one task that the learner was trained on, in a loop that no recorder can see.

        It is a plain one: ``steps`` gradient steps of size ``lr`` on the support set from the learner's parameters,
        then the gradient of the loss on the query set. The data are kept within the learner's ``data_bytes``, and
        can't be had again beyond.

        Args:
            learner: whose recording it is for. For a loop without one: ``learn2learn.algorithms.MAML(model, lr)``,
                which shares the model's parameters.
            support, query: ``(x, y)``, with a row for each sample.
            lr, steps, first_order: of the adaptation.
            key: names the task: 0, 1, ...; None for a name by content, where the same data are the same task.

        Raises:
            RecordingError: ``learner`` is none that can be recorded.
            TaskShapeError: the rows do not fit together.
            ValueError: lr, steps or key is out of its range.
        """
        require_learner(learner)
        episode = ToldEpisode(support, query, lr, steps, first_order, key)
        tell(self.meet(learner), episode)

    def save(self, path: str | Path) -> Path:
        """Write the tasks, their data and `learner`'s weights to a folder, as safetensors and JSON; see :meth:`load`.

        What was recorded is written even if it is not the whole story; a loaded study says then why it is not. A study
        that the folder holds already is replaced; data that it has in common with this one stay where they are.

        Raises:
            RecordingError: there is not one learner, or the folder holds something else.
            PartlySavedError: all was written but the data of some tasks, which cannot be had again.
        """
        return self._write(path, self.recording.tasks)

    def save_so_far(self, path: str | Path) -> Path:
        """:meth:`save` for who looks on while the loop goes on: the study itself is as if it had not been asked.

        No more is read than what is in memory, or had of a taskset that serves the same again.
        """
        return self._write(path, self.recording.tasks_so_far)

    def parts(self) -> list[Study]:
        """A study of each learner that trained, or of each where none did."""
        learners = [learner for learner in self.learners if _trained(learner)] or self.learners
        return [self._part(learner) for learner in learners]

    @classmethod
    def load(cls, path: str | Path | Sequence[str | Path], model: nn.Module, body: nn.Module | None = None) -> Study:
        """Read what :meth:`save` wrote, to ask hooks about it: no taskset, data set or script is needed.

        Args:
            path: the folder. Or those of all processes of one run, by rank, each with the tasks that it drew: they
                are merged into one study, where a task that several of them drew is one, with all their draws.
            model: a module like the learner's; or a learner like the saved one, which GBML's transforms need. The saved
                weights are loaded into it.
            body: for ANIL, a module like the one that made the features; its weights are loaded too.

        Raises:
            RecordingError: there is no whole study in the folder, or the modules do not fit its weights.
            RanksDisagreeError: the processes did not end with the same parameters.
        """
        paths = [path] if isinstance(path, (str, Path)) else path
        saved = merged([storage.load(path) for path in paths])
        about = saved.about
        learner = rebuilt(model, saved.weights, about)
        _load_body(body, saved.weights)
        observe.enter(learner, LoadedRecording(saved.tasks, body, about))
        study = cls()
        study.learners.append(learner)
        return study

    def meet(self, learner: nn.Module) -> Recording:
        """Take note of a learner, unless it is a clone of one. Called before each clone is made."""
        if not observe.watched(learner) and not any(known is learner for known in self.learners):
            observe.prepare(learner, self.options)
            self.learners.append(learner)
        if self.between_steps is not None:
            self.between_steps()
        return recording_of(learner)

    def describe(self) -> str:
        """What was recorded of each learner, and what could not be."""
        lines = [f"{type(learner).__name__}: {recording_of(learner).describe()}" for learner in self.learners]
        return "\n".join([*(lines or ["No learner was cloned."]), *self._remarks()])

    def __repr__(self) -> str:
        return f"<Study: {self.describe()}>"

    def _part(self, learner: nn.Module) -> Study:
        part = Study(self.options)
        part.learners.append(learner)
        part.remarks.update(self.remarks)
        return part

    def _write(self, path: str | Path, tasks: list[RecordedTask]) -> Path:
        learner, recording = self.learner, self.recording
        body, unclear = _body(recording)
        weights = weights_of(learner)
        if body is not None:
            weights |= {f"{BODY}.{name}": value for name, value in body.state_dict().items()}
        about = {
            **settings_of(learner),
            "buffers": [*_buffers(MODEL, model_of(learner)), *_buffers(BODY, body)],
            "summary": self.describe(),
            "trouble": recording.trouble or unclear,
            "stands_for": recording.stands_for,
            "unmatched": recording.unmatched,
        }
        return storage.save(path, tasks, weights, about)

    def _remarks(self) -> list[str]:
        return [f"{count} {text}." for text, count in self.remarks.items()]

    def _why_not_one(self, trained: list[nn.Module]) -> str:
        if not trained:
            return " ".join(
                [
                    "No learner was cloned inside record(). It sees those derived from learn2learn's MAML, MetaSGD and "
                    "GBML; for loops without one there is add_episode().",
                    *self._remarks(),
                ]
            )
        counts = [f"{type(learner).__name__} ({_trained(learner)} tasks)" for learner in trained]
        return (
            f"{len(trained)} learners, not one, trained tasks (or only validated): {', '.join(counts)}. "
            "Take one of .learners, and recording_of(it)."
        )


def _trained(learner: nn.Module) -> int:
    """How many tasks the learner was trained on."""
    return sum(task.times_trained > 0 for task in recording_of(learner).tasks_so_far)


def _body(recording: Recording) -> tuple[nn.Module | None, str]:
    """What made the features, or why that is unclear."""
    try:
        return recording.body, ""
    except RecordingError as error:
        return None, str(error)


def _buffers(part: str, module: nn.Module | None) -> list[str]:
    """Names in the files of what is no parameter."""
    if module is None:
        return []
    return [f"{part}.{name}" for name, _ in module.named_buffers(remove_duplicate=False)]


def _load_body(body: nn.Module | None, weights: dict[str, Tensor]) -> None:
    own = {name.removeprefix(f"{BODY}."): value for name, value in weights.items() if name.startswith(f"{BODY}.")}
    if body is not None:
        load_weights(body, own, BODY)
    elif own:
        raise RecordingError("the study was recorded with features of a body: pass body=, a module like it")
