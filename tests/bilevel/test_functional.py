"""A user's module as a function: the same outputs as the module itself, which is never touched."""

from __future__ import annotations

import copy
import random
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint as checkpointing
from learn2learn.algorithms import MAML
from learn2learn.vision.models import CNN4, OmniglotCNN, OmniglotFC, ResNet12
from torch import Tensor, nn
from torch.func import grad, jvp, vmap

from l2l_influence.bilevel import FunctionalModel, Layout
from l2l_influence.bilevel.functional import FunctionalModule
from l2l_influence.errors import UncoveredParameterError

from ..reference_problems.autograd import generator


class Tied(nn.Module):
    """The same Parameter in two modules."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4, bias=False), nn.Linear(4, 4)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.second(torch.tanh(self.first(x)))


class Twice(nn.Module):
    """The same module under two names."""

    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
        self.features = nn.Sequential(self.trunk, nn.Tanh(), self.trunk)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.features(x))


def frozen():
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3))
    model[0].weight.requires_grad_(False)
    return model


def nested():
    block = nn.Sequential(nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6, momentum=None)), nn.Tanh())
    return nn.Sequential(block, nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3, affine=False)))


def instance_norm():
    return nn.Sequential(nn.Conv1d(1, 3, 2), nn.InstanceNorm1d(3, affine=True, track_running_stats=True), nn.Flatten())


MODELS = {
    "OmniglotCNN": (lambda: OmniglotCNN(3, hidden_size=4, layers=2), (6, 1, 28, 28)),
    "OmniglotFC": (lambda: OmniglotFC(16, 3, sizes=[8, 6]), (6, 16)),
    "CNN4": (lambda: CNN4(3, hidden_size=4, layers=4, embedding_size=4), (6, 3, 16, 16)),
    "tied": (Tied, (5, 4)),
    "twice": (Twice, (5, 4)),
    "frozen": (frozen, (5, 4)),
    "nested": (nested, (5, 4)),
    "instance norm": (instance_norm, (5, 1, 4)),
}


def make(name):
    build, shape = MODELS[name]
    torch.manual_seed(1)
    model = build().double()
    for buffer in model.buffers():  # running statistics that would show if they were used
        if buffer.is_floating_point():
            buffer.copy_(1 + torch.rand(buffer.shape, generator=generator(7)))
    return model, torch.randn(*shape, dtype=torch.float64, generator=generator(2))


class Witness:
    """All that may not change in a user's model, and the random states."""

    def __init__(self, model):
        self.model = model
        self.parameters = {n: (p, p._version, p.detach().clone(), p.requires_grad, p.grad) for n, p in self._named()}
        self.buffers = {n: (b, b.clone()) for n, b in model.named_buffers(remove_duplicate=False)}
        self.modes = {n: m.training for n, m in model.named_modules(remove_duplicate=False)}
        self.hooks = self._hooks()
        self.random = (torch.get_rng_state(), random.getstate(), np.random.get_state())

    def _named(self):
        return self.model.named_parameters(remove_duplicate=False)

    def _hooks(self):
        return {
            (name, kind): list(getattr(module, kind).items())
            for name, module in self.model.named_modules(remove_duplicate=False)
            for kind in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
        }

    def check(self):
        assert dict(self._named()).keys() == self.parameters.keys()
        for name, parameter in self._named():
            same, version, value, flag, slope = self.parameters[name]
            assert parameter is same and parameter._version == version and torch.equal(parameter, value)
            assert parameter.requires_grad == flag and parameter.grad is slope
        found = dict(self.model.named_buffers(remove_duplicate=False))
        assert found.keys() == self.buffers.keys()
        assert all(found[name] is same and torch.equal(same, value) for name, (same, value) in self.buffers.items())
        assert {n: m.training for n, m in self.model.named_modules(remove_duplicate=False)} == self.modes
        assert self._hooks() == self.hooks
        assert torch.equal(torch.get_rng_state(), self.random[0]) and random.getstate() == self.random[1]
        assert all(np.array_equal(a, b) for a, b in zip(np.random.get_state(), self.random[2], strict=True))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("training", [True, False])
def test_outputs_are_the_models_own_with_batch_statistics(name, training):
    model, x = make(name)
    expected = copy.deepcopy(model).train()(x).detach()
    function = FunctionalModel(model.train(training))
    assert torch.allclose(function(function.parameters, x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", MODELS)
def test_running_statistics_on_demand(name):
    model, x = make(name)
    expected = copy.deepcopy(model).eval()(x).detach()
    function = FunctionalModel(model, batch_norm="running")
    assert torch.allclose(function(function.parameters, x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", MODELS)
def test_other_parameters_give_what_the_model_gives_with_them(name):
    model, x = make(name)
    function = FunctionalModel(model)
    other = {key: value + 0.1 * torch.randn(value.shape).to(value) for key, value in function.parameters.items()}
    twin = copy.deepcopy(model).train()
    with torch.no_grad():
        for key, parameter in twin.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(other[key])
    assert torch.allclose(function(other, x), twin(x).detach(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", MODELS)
def test_gradients_are_the_models_own(name):
    model, x = make(name)
    function = FunctionalModel(model)
    found = grad(lambda p: function(p, x).square().sum())(function.parameters)
    twin = copy.deepcopy(model).train()
    twin(x).square().sum().backward()
    for key, parameter in twin.named_parameters():
        if parameter.requires_grad:
            assert torch.allclose(found[key], parameter.grad, rtol=1e-9, atol=1e-10)
        else:
            assert key not in found


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("training", [True, False])
def test_the_users_model_is_never_touched(name, training):
    model, x = make(name)
    model.train(training)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
    witness = Witness(model)
    function = FunctionalModel(model)
    p = function.parameters

    def loss(p, x):
        return function(p, x).square().sum()

    function(p, x)
    grad(loss)(p, x)
    vmap(grad(loss), in_dims=(None, 0))(p, torch.stack([x, 2 * x]))
    jvp(lambda p: grad(loss)(p, x), (p,), (p,))
    grad(lambda p: sum((g * g).sum() for g in grad(loss)(p, x).values()))(p)
    witness.check()
    assert all(value.data_ptr() != dict(model.named_parameters())[key].data_ptr() for key, value in p.items())


def test_the_users_model_survives_an_exception_inside_the_forward():
    class Fragile(Twice):
        def forward(self, x):
            out = self.features(x)
            if x.shape[0] == 2:
                raise RuntimeError("on purpose")
            return self.head(out)

    model, x = Fragile().double(), torch.randn(5, 4, dtype=torch.float64)
    witness = Witness(model)
    function = FunctionalModel(model)
    before = function(function.parameters, x)
    other = {key: 2 * value for key, value in function.parameters.items()}
    for call in (function, lambda p, x: grad(lambda p: function(p, x).sum())(p)):
        with pytest.raises(RuntimeError, match="on purpose"):
            call(other, x[:2])
        witness.check()
    assert torch.equal(function(function.parameters, x), before)


def test_a_tied_weight_changes_in_both_places_and_is_one_parameter():
    model, x = make("tied")
    function = FunctionalModel(model)
    assert set(function.parameters) == {"first.weight", "second.bias"}
    weight = torch.randn(4, 4, dtype=torch.float64)
    bias = function.parameters["second.bias"]
    expected = torch.tanh(x @ weight.T) @ weight.T + bias
    assert torch.allclose(function({"first.weight": weight, "second.bias": bias}, x), expected)


def test_a_module_that_is_registered_twice_has_each_parameter_once():
    model, _ = make("OmniglotCNN")
    function = FunctionalModel(model)
    assert sum(value.numel() for value in function.parameters.values()) == sum(p.numel() for p in model.parameters())
    assert set(function.parameters) == {name for name, _ in model.named_parameters()}


def test_later_changes_of_the_model_do_not_reach_the_function():
    model, x = make("nested")
    function = FunctionalModel(model)
    before = function(function.parameters, x)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    assert torch.equal(function(function.parameters, x), before)


def test_calls_repeat_though_a_module_counts_them():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3))
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls += 1
            return self.scale * x * self.calls

    model = Counting()
    function, x = FunctionalModel(model), torch.randn(2, 3)
    assert torch.equal(function(function.parameters, x), function(function.parameters, x))
    assert model.calls == 0


class WithDropout(nn.Sequential):
    def __init__(self, p):
        super().__init__(nn.Linear(4, 50), nn.Dropout(p), nn.Linear(50, 3))


def test_dropout_is_switched_off_with_a_warning():
    model, x = WithDropout(0.5), torch.randn(5, 4)
    witness = Witness(model)
    with pytest.warns(UserWarning, match="Dropout is switched off"):
        function = FunctionalModel(model)
    first = function(function.parameters, x)
    assert torch.equal(first, function(function.parameters, x))
    witness.check()
    assert torch.allclose(first, copy.deepcopy(model).eval()(x))


@pytest.mark.parametrize("build", [lambda: WithDropout(0.0), lambda: WithDropout(0.5).eval()])
def test_dropout_that_does_nothing_is_not_warned_about(build):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        FunctionalModel(build())
    assert not caught


@pytest.mark.parametrize("name", ["dropout", "dropout1d", "dropout2d", "alpha_dropout"])
def test_dropout_called_as_a_function_is_switched_off_too(name):
    class Functional(nn.Linear):
        def forward(self, x):
            return getattr(nn.functional, name)(super().forward(x), training=self.training)

    model, x = Functional(3, 20), torch.randn(4, 2, 3)
    function = FunctionalModel(model)
    state = torch.get_rng_state()
    with pytest.warns(UserWarning, match=f"{name} is switched off"):
        found = function(function.parameters, x)
    assert torch.equal(found, copy.deepcopy(model).eval()(x))
    with pytest.warns(UserWarning, match="switched off"):
        vmap(grad(lambda p, x: function(p, x).sum()), in_dims=(None, 0))(function.parameters, torch.stack([x, x]))
    assert torch.equal(torch.get_rng_state(), state)


def test_dropblock_is_switched_off_with_a_warning():
    model = ResNet12(2)  # calls dropout as a function besides
    with pytest.warns(UserWarning, match="DropBlock is switched off"):
        function = FunctionalModel(model)
    x = torch.randn(2, 3, 84, 84, generator=generator(0))
    state = torch.get_rng_state()
    with pytest.warns(UserWarning, match="dropout is switched off"):
        assert torch.equal(function(function.parameters, x), function(function.parameters, x))
    assert torch.equal(torch.get_rng_state(), state)


def test_what_cannot_be_attributed_to_is_refused():
    with pytest.raises(UncoveredParameterError, match="no trainable parameter"):
        FunctionalModel(nn.Linear(2, 2).requires_grad_(False))
    with pytest.raises(UncoveredParameterError, match="meta-model"):
        FunctionalModel(MAML(nn.Linear(2, 2), lr=0.1).clone())
    with pytest.raises(ValueError, match="batch_norm"):
        FunctionalModel(nn.Linear(2, 2), batch_norm="both")
    lstm = FunctionalModel(nn.LSTM(2, 2))
    with pytest.raises(UncoveredParameterError, match="one tensor, not tuple"):
        lstm(lstm.parameters, torch.randn(3, 2))


def test_second_derivatives_of_weight_normalisation_are_right() -> None:
    """torch's own are not: a product with the Hessian is off by some 10 %."""
    torch.manual_seed(0)
    normed = nn.utils.parametrizations.weight_norm(nn.Linear(3, 4))
    net = nn.Sequential(normed, nn.Tanh(), nn.Linear(4, 2)).double()
    model, x = FunctionalModel(net), torch.randn(5, 3, dtype=torch.float64)
    layout = Layout(model.parameters)
    at, v = layout.ravel(model.parameters), torch.randn(layout.size, dtype=torch.float64)
    assert torch.allclose(model(model.parameters, x), net(x), rtol=1e-12)

    def value(flat: Tensor) -> Tensor:
        return model(layout.unravel(flat), x).square().sum()

    slope = torch.func.grad(value)
    product = torch.func.grad(lambda flat: slope(flat) @ v)(at)
    step = 1e-5
    expected = (slope(at + step * v) - slope(at - step * v)) / (2 * step)
    assert float((product - expected).norm() / expected.norm()) < 1e-7


class Two(nn.Module):
    """Two inputs, a keyword, and outputs in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x: Tensor, others: list[Tensor], *, scale: float = 1.0) -> dict[str, object]:
        return {"sum": scale * self.layer(x + others[0]), "more": (self.layer(others[1]), len(others))}


def test_a_module_is_called_with_any_arguments_and_returns_any_outputs() -> None:
    torch.manual_seed(0)
    module, x, y = Two(), torch.randn(4, 3), torch.randn(4, 3)
    parameters = {name: value.detach() + 1 for name, value in module.named_parameters()}
    found = FunctionalModule(module)(parameters, x, [y, x], scale=2.0)
    torch.testing.assert_close(found["sum"], 2 * F.linear(x + y, parameters["layer.weight"], parameters["layer.bias"]))
    torch.testing.assert_close(found["more"][0], F.linear(x, parameters["layer.weight"], parameters["layer.bias"]))
    assert found["more"][1] == 2


def test_a_model_for_a_loss_has_to_return_one_tensor() -> None:
    with pytest.raises(UncoveredParameterError, match="must return one tensor, not dict"):
        FunctionalModel(Two())(dict(Two().named_parameters()), torch.randn(4, 3), [torch.randn(4, 3)] * 2)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoints_are_ignored_inside_and_work_again_outside(reentrant: bool) -> None:
    """A checkpoint would compute its activations again in the backward pass, from the parameters of the copy."""

    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return checkpointing.checkpoint(lambda x: self.layer(x).tanh(), x, use_reentrant=reentrant)

    before = dict(vars(checkpointing))
    module, x = Checkpointed(), torch.randn(4, 3)
    parameters = {name: (value.detach() + 1).requires_grad_() for name, value in module.named_parameters()}
    found = torch.autograd.grad(FunctionalModel(module)(parameters, x).sum(), list(parameters.values()))
    expected = F.linear(x, parameters["layer.weight"], parameters["layer.bias"]).tanh().sum()
    torch.testing.assert_close(found, torch.autograd.grad(expected, list(parameters.values())))
    assert dict(vars(checkpointing)) == before
