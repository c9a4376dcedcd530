"""Fit the keyword network in PyTorch and write it as ONNX. Only this module needs torch, and no test does.

A DS-CNN (Y. Zhang et al., "Hello Edge: Keyword Spotting on Microcontrollers", 2017, arXiv:1711.07128) that convolves
over time alone, with the coefficients as channels (as S. Choi et al., "Temporal Convolution for Real-time Keyword
Spotting on Mobile Devices", 2019, arXiv:1904.03814): one convolution over 10 frames and all coefficients with a stride
of 2, then pairs of a depthwise convolution over 9 frames and a 1x1 convolution, a mean over time and a dense layer.
What is ours is chosen for a CPU:
- channels are a multiple of 16, the block that ONNX Runtime's convolutions work in;
- the first convolution covers every coefficient and has no padding, so scaling the coefficients to mean 0 and deviation
  1 is exactly a part of its weights: a device sends coefficients as they are and pays for no further node.

Labels are smoothed: the scores stay short of 1 and tell confident from very confident, which a drift sketch
of the winning score needs. Weights are averaged over the last epochs' steps (exponential moving average).

Measured with torch 2.13.0 on one CPU thread; another torch may give other weights of the same quality.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from models.export import export_onnx
from models.keywords.corpus import Heard
from models.keywords.data import INPUT
from models.keywords.features import COEFFICIENTS, FRAMES, coefficients_of
from models.keywords.variation import varied
from models.keywords.voices import LABELS, SILENCE

_SMOOTHING = 0.05
_WEIGHT_DECAY = 1e-3
_DROPOUT = 0.2
_AVERAGE_DECAY = 0.998
_FIRST_FRAMES = 10
_LATER_FRAMES = 9


@dataclass(frozen=True, kw_only=True)
class Training:
    """How large the network is and how long it learns."""

    channels: int = 128
    blocks: int = 4
    epochs: int = 32
    batch: int = 128
    learning_rate: float = 4e-3
    seed: int = 1


def fit(heard: Heard, training: Training) -> bytes:
    """The trained network as the bytes of an ONNX file: `features` `[n, 1, 49, 10]`, `probabilities` `[n, 12]`."""
    torch.manual_seed(training.seed)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    randomness = np.random.default_rng(training.seed)
    noises = heard.log_mels[heard.labels == SILENCE]
    usual = coefficients_of(heard.log_mels)
    mean, deviation = usual.mean(axis=(0, 1)), usual.std(axis=(0, 1))
    network = _network(training).to(memory_format=torch.channels_last)
    averaged = copy.deepcopy(network)
    steps = training.epochs * -(-len(heard.labels) // training.batch)
    optimizer = torch.optim.AdamW(network.parameters(), lr=training.learning_rate, weight_decay=_WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, training.learning_rate, total_steps=steps)
    loss = nn.CrossEntropyLoss(label_smoothing=_SMOOTHING)
    labels = torch.from_numpy(heard.labels.astype(np.int64))
    network.train()
    for _ in range(training.epochs):
        order = randomness.permutation(len(labels))
        for start in range(0, len(order), training.batch):
            chosen = order[start : start + training.batch]
            seen = (coefficients_of(varied(heard.log_mels[chosen], noises, randomness)) - mean) / deviation
            optimizer.zero_grad()
            loss(network(torch.from_numpy(seen[:, None])), labels[chosen]).backward()
            optimizer.step()
            schedule.step()
            _average(averaged, network)
    return _export(averaged.eval(), mean, deviation)


def _network(training: Training) -> nn.Sequential:
    channels = training.channels
    layers: list[nn.Module] = [
        nn.Conv2d(1, channels, (_FIRST_FRAMES, COEFFICIENTS), stride=(2, 1)),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
    ]
    for _ in range(training.blocks):
        layers += [
            nn.Conv2d(
                channels, channels, (_LATER_FRAMES, 1), padding=(_LATER_FRAMES // 2, 0), groups=channels, bias=False
            ),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
        ]
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(_DROPOUT), nn.Linear(channels, len(LABELS))]
    return nn.Sequential(*layers)


def _average(averaged: nn.Module, network: nn.Module) -> None:
    with torch.no_grad():
        for old, new in zip(averaged.state_dict().values(), network.state_dict().values(), strict=True):
            if old.dtype.is_floating_point:
                old.lerp_(new, 1.0 - _AVERAGE_DECAY)
            else:
                old.copy_(new)


class _Device(nn.Module):  # type: ignore[misc,unused-ignore] # nn.Module is Any where torch is not installed
    """Coefficients as they are in, probabilities out."""

    def __init__(self, layers: nn.Sequential) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return torch.softmax(self.layers(features), dim=1)


def _export(network: nn.Sequential, mean: NDArray[np.float32], deviation: NDArray[np.float32]) -> bytes:
    with torch.no_grad():
        first = network[0]
        # w . (x - mean) / deviation + b  is  (w / deviation) . x + (b - (w / deviation) . mean)
        first.weight /= torch.from_numpy(deviation)
        first.bias -= (first.weight * torch.from_numpy(mean)).sum(dim=(1, 2, 3))
    example = torch.zeros(1, 1, FRAMES, COEFFICIENTS)
    return export_onnx(_Device(network), [example], inputs=[INPUT], outputs=["probabilities"])
