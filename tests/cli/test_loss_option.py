"""``--loss``: torch's losses with their settings, and functions of modules."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from l2l_influence.app.commands.run import LOSS_NAMES
from l2l_influence.app.script_run.losses import LOSSES, ImportedLoss, UnknownLossError, named_loss

from .scripts import SET_UP, TRAINING, VALIDATION, code_on_the_page, in_tmp_path, page, run, scores, write

__all__ = ["in_tmp_path"]

# ---- torch's losses ---------------------------------------------------------------------------------------------


def test_help_lists_torch_s_losses() -> None:
    assert set(LOSS_NAMES) <= set(LOSSES)
    assert {LOSSES[name] for name in ("mse", "bce-with-logits", "smooth-l1", "nll", "kl-div")} == {
        nn.MSELoss,
        nn.BCEWithLogitsLoss,
        nn.SmoothL1Loss,
        nn.NLLLoss,
        nn.KLDivLoss,
    }
    assert not {"ctc", "triplet-margin", "gaussian-nll", "cosine-embedding"} & set(LOSSES), "these take other arguments"


@pytest.mark.parametrize("name", LOSS_NAMES)
def test_every_loss_can_be_made(name: str) -> None:
    loss = named_loss(name).load("script.py", torch.zeros(1)).loss
    assert isinstance(loss, LOSSES[name]) and loss.reduction == "mean"


def test_settings_are_those_of_torch() -> None:
    text = "cross-entropy(label_smoothing=0.1, ignore_index=-1, weight=[1, 2.5], reduction='sum')"
    chosen = named_loss(text).load("script.py", torch.zeros(1, dtype=torch.float64))
    loss = chosen.loss
    assert isinstance(loss, nn.CrossEntropyLoss) and chosen.reduction is None
    assert (loss.label_smoothing, loss.ignore_index, loss.reduction) == (0.1, -1, "sum")
    assert loss.weight is not None and loss.weight.tolist() == [1, 2.5] and loss.weight.dtype == torch.float64
    names: dict[str, object] = {}
    exec(f"{chosen.imports}\nfound = dict({chosen.code})", names)
    again = names["found"]["loss"]  # type: ignore[index]
    assert torch.equal(
        again(torch.ones(2, 2), torch.tensor([0, 1])), loss.float()(torch.ones(2, 2), torch.tensor([0, 1]))
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("x", "module:function or one of bce, .*, cross-entropy.*; got 'x'"),
        ("mse(beta=1)", "mse has no setting 'beta'; its settings are reduction"),
        ("huber(beta=1)", "its settings are reduction, delta"),
        ("huber(delta='1')", "delta of huber must be a number; got '1'"),
        ("kl-div(log_target=1)", "log_target of kl-div must be bool"),
        ("cross-entropy(weight=3)", "weight of cross-entropy must be a list of numbers"),
        ("mse(reduction='none')", "reduction must be one of mean, sum; got 'none'"),
        ("mse(reduction=open('ran', 'w'))", "names and plain values"),
        ("mse(**open('ran', 'w'))", "names and plain values"),
        ("mse(open('ran', 'w'))", "names and plain values"),
        ("mse(reduction='sum')(1)", "names and plain values"),
        ("mse(", "module:function or one of"),
        ("a:b:c", "module:function or one of"),
        ("a.1:b", "module:function or one of"),
    ],
)
def test_what_is_wrong_is_named_and_no_code_runs(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        named_loss(text)
    assert not Path("ran").exists()


def test_the_reduction_is_given_once() -> None:
    assert named_loss("mse", "sum") == named_loss("mse(reduction='sum')") == named_loss("mse(reduction='sum')", "sum")
    with pytest.raises(ValueError, match="--reduction says 'mean'"):
        named_loss("mse(reduction='sum')", "mean")


# ---- module:function ------------------------------------------------------------------------------------------------


def test_a_module_is_checked_without_running_it() -> None:
    Path("package").mkdir()
    Path("package/__init__.py").write_text("open('ran', 'w')")
    Path("package/losses.py").write_text("open('ran', 'w')\nfrom math import sin as soft\nfor hard in (): pass")
    Path("anything.py").write_text("from losses import *")
    for name in ("soft", "hard"):
        assert not ImportedLoss("package.losses", name).check("script.py")
    with pytest.raises(UnknownLossError, match="losses.py defines no soften, which --loss package.losses:soften names"):
        ImportedLoss("package.losses", "soften").check("script.py")
    assert not ImportedLoss("anything", "soft").check("script.py"), "its source does not tell"
    assert "there is no module later yet" in ImportedLoss("later", "soft").check("script.py")
    assert not Path("ran").exists()


BY_HAND = SET_UP.replace(
    "loss = nn.CrossEntropyLoss()", "loss = lambda o, y: -o.log_softmax(1)[range(len(y)), y].mean()"
)

LOSS_FILE = """
from torch import nn

print("imported")
each = nn.CrossEntropyLoss(reduction="none")

def for_each_sample(outputs, labels):
    return each(outputs, labels)

class Whole(nn.CrossEntropyLoss):
    pass

number = 3
"""


def test_functions_modules_and_classes_are_the_loss(capsys: pytest.CaptureFixture[str]) -> None:
    write(BY_HAND, TRAINING, VALIDATION)
    Path("own_losses.py").write_text(LOSS_FILE)
    found = []
    for loss in ("cross-entropy", "own_losses:for_each_sample", "own_losses:Whole"):
        run("--quiet", "--loss", loss, "script.py")
        found.append(scores())
    assert found[0] == pytest.approx(found[1], rel=1e-4) and found[0] == pytest.approx(found[2], rel=1e-4)
    assert "loss=Whole()" in code_on_the_page() and "from own_losses import Whole" in code_on_the_page()
    printed = capsys.readouterr().out.splitlines()
    assert printed.count("imported") == 1
    assert printed.index("imported") > 10, "once the script has ended"
    run("--quiet", "--loss", "own_losses:number", "script.py")
    assert "--loss own_losses:number is no loss: int objects cannot be called" in page()


def test_a_function_of_the_script_needs_no_second_run(capsys: pytest.CaptureFixture[str]) -> None:
    own = "def own(outputs, labels):\n    return nn.functional.cross_entropy(outputs, labels, reduction='none')\n"
    write(BY_HAND, own, TRAINING, VALIDATION)
    run("--quiet", "--loss", "script:own", "script.py")
    assert len(scores()) == 10 and capsys.readouterr().out.count("error") == 10
    assert "own is defined in script.py" in code_on_the_page()


def test_a_module_that_never_appears_leaves_the_study(capsys: pytest.CaptureFixture[str]) -> None:
    write(BY_HAND, TRAINING)
    assert run("--quiet", "--loss", "nowhere:soft", "script.py") == 0
    said = capsys.readouterr().err
    assert "there is no module nowhere yet" in said and "--loss nowhere:soft could not be imported" in said
    assert Path("l2l-influence-run/study").is_dir() and not Path("l2l-influence-run/scores.csv").exists()
