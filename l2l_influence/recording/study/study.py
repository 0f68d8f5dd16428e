"""`Study`: the learners whose training was recorded, and their recordings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from learn2learn.data import Taskset
from torch import Tensor, nn

from ...errors import RecordingError
from ..episodes.manual import ManualEpisode
from ..episodes.task import RecordedTask
from ..learners.base import model_of
from ..learners.registry import adapter_of, require_learner
from ..options import RecordingOptions
from ..recording import Recording, enter, prepare, recording_of, watched
from ..uncopied import Uncopied
from . import storage
from .loaded import LoadedRecording
from .merging import merged
from .rebuilding import MODEL, load_weights, rebuilt, weights_of

BODY = "body"
"""Prefix of the names of the body's weights in the files."""


class Study(Uncopied):
    """The learners that were cloned in a `record` block, and their recordings.

    Attributes:
        options: what to keep, for learners that have no recording yet.
        learners: the learners that were cloned, in order of first clone; the study keeps them alive.
        remarks: events that belong to no learner's recording, with counts.
        between_steps: called in the loop's own thread before each clone is made; or None.
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
            RecordingError: several learners trained, or none was cloned.
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
        """All tasks that `learner` was fed, as in `Recording.tasks`."""
        return self.recording.tasks

    def training_tasks(self, tasks: Taskset | None = None) -> list[RecordedTask]:
        """The tasks that `learner` was trained on, as in `Recording.training_tasks`, with the same errors."""
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
        """Enter by hand one draw of a task that the learner was trained on, for a loop that no recorder can see.

        The episode must consist of ``steps`` gradient steps of size ``lr`` on the support set, from the learner's
        parameters, and the gradient of the loss on the query set. The data are kept within the learner's
        ``data_bytes``; data beyond that limit are lost.

        Args:
            learner: the learner that was trained. For a loop without a learner, make one that shares the model's
                parameters: ``learn2learn.algorithms.MAML(model, lr)``.
            support, query: ``(x, y)``, with one row for each sample.
            lr, steps, first_order: of the adaptation.
            key: number of the task (0, 1, ...); None to recognise the task by its data.

        Raises:
            RecordingError: ``learner`` cannot be recorded.
            TaskShapeError: the rows do not fit together.
            ValueError: lr, steps or key is out of range.
        """
        require_learner(learner)
        episode = ManualEpisode(support, query, lr, steps, first_order, key)
        self.meet(learner).add_manual(episode)

    def save(self, path: str | Path) -> Path:
        """Write the tasks, their data and `learner`'s weights to a folder, as safetensors and JSON, for :meth:`load`.

        An incomplete recording is saved too; the loaded study then raises the error that says what is missing. A study
        that the folder holds already is replaced; data that both have in common are not written again.

        Raises:
            RecordingError: the study does not have exactly one learner, or the folder holds something else.
            PartlySavedError: everything was written except the data of some tasks, which cannot be read again.
        """
        return self._write(path, self.recording.tasks)

    def save_so_far(self, path: str | Path) -> Path:
        """:meth:`save` during training: assigns no permanent ids and keeps no extra memory.

        Data are written only if they are in memory, or if the taskset has proved to serve the same data again.
        """
        return self._write(path, self.recording.tasks_so_far)

    def parts(self) -> list[Study]:
        """A study for each learner that trained; for each learner, if none did."""
        learners = [learner for learner in self.learners if _trained(learner)] or self.learners
        return [self._part(learner) for learner in learners]

    @classmethod
    def load(cls, path: str | Path | Sequence[str | Path], model: nn.Module, body: nn.Module | None = None) -> Study:
        """Read a study that :meth:`save` wrote, for use in hooks. No taskset, data set or script is needed.

        Args:
            path: the folder; or the folders of all processes of one run, by rank. The latter are merged into one study;
                a task that several processes drew becomes one task, and its counts are added.
            model: a module like the learner's model; or a learner like the saved one, which a GBML requires because of
                its transforms. The saved weights are loaded into it.
            body: for ANIL, a module like the one that computed the features; its weights are loaded too.

        Raises:
            RecordingError: the folder holds no complete study, or the modules do not fit the saved weights.
            RanksDisagreeError: the processes ended with different parameters.
        """
        paths = [path] if isinstance(path, (str, Path)) else path
        saved = merged([storage.load(path) for path in paths])
        about = saved.about
        learner = rebuilt(model, saved.weights, about)
        _load_body(body, saved.weights)
        enter(learner, LoadedRecording(saved.tasks, body, about))
        study = cls()
        study.learners.append(learner)
        return study

    def meet(self, learner: nn.Module) -> Recording:
        """Add a learner, unless it is a clone of one, and return its recording. Called before each clone is made."""
        if not watched(learner) and not any(known is learner for known in self.learners):
            prepare(learner, self.options)
            self.learners.append(learner)
        if self.between_steps is not None:
            self.between_steps()
        return recording_of(learner)

    def describe(self) -> str:
        """A description of each learner's recording, and remarks."""
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
            **adapter_of(learner).settings(),
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
                    "No learner was cloned inside record(), which records learners derived from learn2learn's MAML, "
                    "MetaSGD and GBML. Clone such a learner inside the block; for a loop without one, enter its "
                    "episodes with add_episode().",
                    *self._remarks(),
                ]
            )
        counts = [f"{type(learner).__name__} ({_trained(learner)} tasks)" for learner in trained]
        return (
            f"This study has {len(trained)} learners, and one is needed: {', '.join(counts)}. Pass one of "
            "study.parts(), or one of study.learners."
        )


def _trained(learner: nn.Module) -> int:
    """Number of tasks that the learner was trained on."""
    return sum(task.times_trained > 0 for task in recording_of(learner).tasks_so_far)


def _body(recording: Recording) -> tuple[nn.Module | None, str]:
    """The modules that computed the features, or why these are unclear."""
    try:
        return recording.body, ""
    except RecordingError as error:
        return None, str(error)


def _buffers(part: str, module: nn.Module | None) -> list[str]:
    """Names of the buffers in the files."""
    if module is None:
        return []
    return [f"{part}.{name}" for name, _ in module.named_buffers(remove_duplicate=False)]


def _load_body(body: nn.Module | None, weights: dict[str, Tensor]) -> None:
    own = {name.removeprefix(f"{BODY}."): value for name, value in weights.items() if name.startswith(f"{BODY}.")}
    if body is not None:
        load_weights(body, own, BODY)
    elif own:
        raise RecordingError(
            "the learner of this study was fed features that a body computed, and the body's weights are saved with "
            "it: pass body=, a module like that body"
        )
