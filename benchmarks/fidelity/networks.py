"""The networks that are trained on images."""

from __future__ import annotations

from collections import OrderedDict

import learn2learn as l2l
from torch import nn

from .tasks import WAYS


def mlp() -> nn.Module:
    """For 8×8 images; P = 2,245. Where units switch, a loss after adaptation jumps: there is no minimum to rest in."""
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, WAYS))


def smooth_mlp() -> nn.Module:
    """The same without switches."""
    return nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, WAYS))


def omniglot_fc() -> nn.Module:
    """With one hidden layer of 32 and BatchNorm; P = 25,349. Its own four layers take eight times as long."""
    return l2l.vision.models.OmniglotFC(28 * 28, WAYS, sizes=[32])


def omniglot_cnn() -> nn.Module:
    """Its four blocks, with 16 channels in place of 64."""
    return l2l.vision.models.OmniglotCNN(WAYS, hidden_size=16)


def plain_cnn() -> nn.Module:
    """Two strided convolutions and a linear layer for 28×28 images, without normalisation; P = 5,173."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * 49, WAYS),
    )


def body_and_head() -> nn.Module:
    """For ANIL: OmniglotFC's features, and a linear head, which alone is adapted."""
    model = omniglot_fc()
    return nn.Sequential(OrderedDict(body=model.features, module=model.classifier))
