"""``l2l-influence run``: a script runs as with python, and its study is saved when it ends."""

from __future__ import annotations

import html
import os
import re
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import learn2learn as l2l
import numpy as np
import pytest
from torch import nn

from l2l_influence import Study, TaskInfluence

from .scripts import (
    FILES,
    SET_UP,
    TRAINING,
    VALIDATION,
    code_on_the_page,
    in_tmp_path,
    loaded,
    page,
    run,
    scores,
    write,
)

__all__ = ["in_tmp_path"]

# ---- as under python --------------------------------------------------------------------------------------------


def test_stdout_and_exit_code_are_those_of_python(tmp_path: Path) -> None:
    ends = """
    class Local:
        pass

    parser = argparse.ArgumentParser()
    parser.add_argument("--out")
    parser.add_argument("rest", nargs="*")
    print(parser.parse_args(), sys.argv, sys.path[0])
    print(__name__, __file__, __package__, __spec__, sys.modules["__main__"].__dict__ is globals())
    print(type(pickle.loads(pickle.dumps(Local()))) is Local)
    sys.exit(3)
    """
    (tmp_path / "folder").mkdir()
    Path("folder/script.py").write_text(SET_UP + TRAINING + VALIDATION + dedent(ends))
    own = ["./folder/script.py", "--out", "theirs", "--", "--quiet"]
    kinds = [own, ["-m", "l2l_influence", "run", "--out", "ours", *own]]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    processes = [
        subprocess.Popen([sys.executable, *arguments], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for arguments in kinds
    ]
    (plain, _), (recorded, said) = (process.communicate(timeout=120) for process in processes)
    assert recorded == plain
    assert plain.count(b"error") == 10 and plain.count(b"__main__") == 1
    assert [process.returncode for process in processes] == [3, 3]
    assert {path.name for path in (tmp_path / "ours").iterdir()} == FILES and not Path("theirs").exists()
    assert b"ended with sys.exit(3)" in said and (tmp_path / "ours" / "report.html").as_uri().encode() in said
    assert b"10 training tasks" in said and b"positive = harmful" in said


@pytest.mark.parametrize(
    ("last", "status", "says"),
    [
        ("pass", 0, ""),
        ("import sys; sys.exit()", None, ""),
        ("import sys; sys.exit('why')", "why", ""),
        ("raise SystemExit(4)", 4, ""),
        ("raise KeyboardInterrupt", 130, "KeyboardInterrupt\n"),
        ("def f(", 1, "SyntaxError: '(' was never closed\n"),
    ],
)
def test_ways_to_end(
    last: str, status: int | str | None, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(last)
    assert run("script.py") == status
    shown, nothing = capsys.readouterr().err.split("There is nothing to write: ")
    assert "No learner was cloned." in nothing
    assert shown.endswith(says) and bool(shown) == bool(says)
    assert not Path("l2l-influence-run").exists()


def test_a_traceback_is_the_script_s_and_what_was_recorded_until_then_is_saved(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(SET_UP, "def fail():\n    raise ValueError('oh no')\n", TRAINING.replace("10", "4"), VALIDATION, "fail()\n")
    assert run("script.py") == 1
    lines = (tmp_path / "script.py").read_text().splitlines()
    expected = (
        "Traceback (most recent call last):\n"
        f'  File "{tmp_path}/script.py", line {len(lines)}, in <module>\n    fail()\n'
        f'  File "{tmp_path}/script.py", line {lines.index("def fail():") + 2}, in fail\n'
        "    raise ValueError('oh no')\nValueError: oh no\n"
    )
    said = capsys.readouterr().err
    assert re.sub(r"^ +[~^]+\n", "", said, flags=re.MULTILINE).startswith(expected)
    assert "ended early, with ValueError" in page() and "It did not run to its end" in page()
    assert {task.key for task in loaded().training_tasks()} == {0, 1, 2, 3} and len(scores()) == 4


def test_what_the_process_had_is_given_back() -> None:
    write("import sys\nsys.path.append('x')\nsys.argv.append('y')\n")
    before = list(sys.argv), list(sys.path), sys.modules["__main__"]
    run("script.py")
    assert (sys.argv, sys.path, sys.modules["__main__"]) == before


# ---- the study --------------------------------------------------------------------------------------------------


def test_scores_are_of_the_loss_on_the_tasks_that_never_trained(capsys: pytest.CaptureFixture[str]) -> None:
    write(SET_UP, TRAINING, VALIDATION)
    assert run("script.py") == 0
    printed, said = capsys.readouterr()
    loss = float(re.findall(r"validation (.*)", printed)[0])
    assert f"the test tasks now ({loss:.4f})" in page() and "6 tasks that the learner was fed but never" in page()
    assert "loss: nn.CrossEntropyLoss(), as the loop called it" in said and "Scores of fit" not in page()
    assert len(scores()) == 10 and list(scores().values()) == sorted(scores().values(), reverse=True)


def test_the_page_s_code_goes_on_with_the_study() -> None:
    write(SET_UP, TRAINING, VALIDATION)
    run("--quiet", "--out", "o", "script.py")
    names = {"model": nn.Linear(8, 3)}
    exec(code_on_the_page("o"), names)
    study, influence = names["study"], names["influence"]
    tests = [(task.support, task.query) for task in study.tasks if not task.times_trained]
    again = influence.scores(tests).values
    np.testing.assert_allclose([again[task] for task in scores("o")], list(scores("o").values()), rtol=1e-4)
    assert set(names["edited"]) == {"module.weight", "module.bias"}


@pytest.mark.parametrize(
    ("learner", "learned"),
    [
        ("MetaSGD(nn.Linear(8, 3), lr=0.4)", {"lrs.0", "lrs.1"}),
        (
            "GBML(nn.Linear(8, 3), l2l.optim.MetaCurvatureTransform, lr=0.4)",
            {f"mc{end}" for end in ("", "_in", "_out")},
        ),
    ],
)
def test_what_a_learner_learned_of_its_steps_is_scored_too(learner: str, learned: set[str]) -> None:
    write(SET_UP.replace("MAML(nn.Linear(8, 3), lr=0.4)", learner), TRAINING, VALIDATION)
    assert run("--quiet", "--work", "all", "script.py") == 0
    assert len(scores()) == 10 and "by a learned rule whose parameters are meta-parameters too" in page()
    like = eval(f"l2l.algorithms.{learner}", {"l2l": l2l, "nn": nn})
    study = Study.load("l2l-influence-run/study", like)
    influence = TaskInfluence(study, loss=nn.CrossEntropyLoss())
    again = influence.scores([(task.support, task.query) for task in study.tasks if not task.times_trained]).values
    np.testing.assert_allclose([again[task] for task in scores()], list(scores().values()), rtol=1e-4, atol=1e-6)
    assert {re.sub(r".*\.(?=mc)", "", name) for name in influence.influence(0)} == {"weight", "bias", *learned}
    assert ("a learner like the script's" in page()) == learner.startswith("GBML")


def test_fewer_test_tasks_are_drawn_by_seed() -> None:
    write(SET_UP, TRAINING, VALIDATION)
    found = []
    for seed in ("1", "1", "2"):
        run("--quiet", "--test-tasks", "2", "--seed", seed, "script.py")
        assert "test tasks: 2 of 6" in page()
        found.append(scores())
    assert found[0] == found[1] != found[2]


def test_the_hessian_is_the_one_asked_for() -> None:
    write(SET_UP, TRAINING, VALIDATION)
    run("--quiet", "--hessian", "gauss-newton", "script.py")
    assert "gauss-newton Hessian" in page()


def test_another_loss_and_reduction(capsys: pytest.CaptureFixture[str]) -> None:
    floats = """
    def collate(samples):
        x, y = torch.utils.data.default_collate(samples)
        return x, nn.functional.one_hot(y, 3).float()

    """
    set_up = SET_UP.replace("num_tasks=count)", "num_tasks=count, task_collate=collate)")
    write(floats, set_up.replace("nn.CrossEntropyLoss()", "nn.MSELoss(reduction='sum')").replace("0.4", "0.01"))
    small_steps = Path("script.py").read_text().replace("parameters(), 0.1)", "parameters(), 0.001)")
    Path("script.py").write_text(small_steps + TRAINING + VALIDATION)
    run("--work", "all", "script.py")
    printed, said = capsys.readouterr()
    loss = float(re.findall(r"validation (.*)", printed)[0])
    assert f"the test tasks now ({loss:.4f})" in page()
    assert "loss: nn.MSELoss(reduction='sum'), as the loop called it" in said
    assert "influence = TaskInfluence(study)\n" in Path("l2l-influence-run/report.html").read_text()


def test_a_loss_that_cannot_be_read_off_has_to_be_said(capsys: pytest.CaptureFixture[str]) -> None:
    """The loss is cross-entropy, computed by hand."""
    by_hand = "loss = lambda o, y: -o.log_softmax(1)[range(len(y)), y].mean()"
    other_data = SET_UP.replace("seed(0)", "seed(1)")  # labels unseen do not tell tasks of equal rows apart
    write(other_data.replace("loss = nn.CrossEntropyLoss()", by_hand), TRAINING, VALIDATION)
    run("script.py")
    printed, said = capsys.readouterr()
    assert "There are no scores: the losses of" in said and "with --loss and --reduction" in said
    run("--loss", "cross-entropy", "script.py")
    loss = float(re.findall(r"validation (.*)", printed)[0])
    assert f"the test tasks now ({loss:.4f})" in page()
    whole = html.unescape(Path("l2l-influence-run/report.html").read_text())
    assert "loss=nn.CrossEntropyLoss(reduction='mean')" in whole


def test_without_other_tasks_scores_are_of_fit_and_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    write(SET_UP, TRAINING)
    run("--quiet", "script.py")
    assert "Scores of fit, not of generalisation" in page()
    assert "10 of 10 that the learner was trained on" in page()
    assert "scores of fit, not generalisation" in capsys.readouterr().err


@pytest.mark.parametrize(("last", "basis"), [("", "1 of 1 that the learner was fed but never"), ("1 / 0", "10 of 10")])
def test_a_task_that_did_not_come_to_its_backward_is_no_test_task(last: str, basis: str) -> None:
    write(SET_UP, "training = taskset(11)\n", TRAINING, f"evaluate(maml, training[10])\n{last}\n")
    run("--quiet", "script.py")
    assert f"test tasks: {basis}" in page()


def test_each_learner_that_trained_has_a_folder() -> None:
    write(SET_UP, "other = l2l.algorithms.MAML(nn.Linear(8, 3), lr=0.4)\n", TRAINING, TRAINING.replace("maml", "other"))
    run("--quiet", "script.py")
    assert {path.name for path in Path("l2l-influence-run").iterdir()} == {"learner-1", "learner-2"}
    first, second = (scores(f"l2l-influence-run/learner-{number}") for number in (1, 2))
    assert len(first) == len(second) == 10 and first != second


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        (("error.backward()", "pass"), "no backward()"),
        (("training[i]", "(training[i][0] * maml.module.weight[0], training[i][1])"), "belongs to no task served"),
        (("lr=0.4", "lr=torch.full((), 0.4, requires_grad=True)"), "learning rates or transforms were learned"),
    ],
)
def test_without_scores_the_study_is_saved_and_the_reason_told(
    changed: tuple[str, str], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write(SET_UP, TRAINING)
    run("--quiet", "script.py")
    write((SET_UP + TRAINING).replace(*changed))
    assert run("--quiet", "script.py") == 0
    assert {path.name for path in Path("l2l-influence-run").iterdir()} == {"study", "report.html"}, "none of the first"
    assert why in page() and why in capsys.readouterr().err and "There are no scores" in page()


def test_a_study_that_cannot_be_saved_does_not_hide_the_scores(capsys: pytest.CaptureFixture[str]) -> None:
    Path("l2l-influence-run/study").mkdir(parents=True)
    Path("l2l-influence-run/study/mine").touch()
    write(SET_UP, TRAINING)
    assert run("--quiet", "script.py") == 0
    assert "holds no study" in page() and "could not be saved" in capsys.readouterr().err
    assert len(scores()) == 10 and "Study.load" not in Path("l2l-influence-run/report.html").read_text()


# ---- the command ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        ["--hessian", "x"],
        ["--loss", "x"],
        ["--loss", "mse(beta=1)"],
        ["--loss", "script:missing"],
        ["--reduction", "x"],
        ["--reduction", "sum"],
        ["--test-tasks", "0"],
        ["--work", "-1"],
        ["--work", "much"],
        ["--none"],
    ],
)
def test_wrong_options_are_refused_before_the_script_runs(options: list[str]) -> None:
    write("open('ran', 'w')")
    assert run(*options, "script.py") == 2
    assert not Path("ran").exists()


def test_a_script_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("nothing.py") == 2
    assert "there is no file nothing.py" in capsys.readouterr().err
