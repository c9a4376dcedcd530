"""Fit the digits network in PyTorch and write it as ONNX. Only this module needs torch, and no test does.

The network is two 3x3 convolutions, a 2x2 maximum and two dense layers: 21,546 weights. The division
of the pixels by 16 and the softmax are in the graph, so a device sends raw pixels and reads probabilities.
Labels are smoothed: the scores stay short of 1 and tell confident from very confident, which a drift sketch
of the winning score needs.

Measured with torch 2.13.0 on one CPU thread; another torch may give other weights of the same quality.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from models.digits.data import Digits
from models.export import export_onnx

_SMOOTHING = 0.05
_WEIGHT_DECAY = 1e-4
_MAX_PIXEL = 16.0


@dataclass(frozen=True, kw_only=True)
class Training:
    """How long to train, and whether every image is shifted by up to a pixel each time it is seen."""

    epochs: int
    shift: bool
    seed: int
    batch: int = 32
    learning_rate: float = 2e-3


def fit(digits: Digits, training: Training) -> bytes:
    """The trained network as the bytes of an ONNX file, input `image`, output `probabilities`."""
    torch.manual_seed(training.seed)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    shuffle = np.random.default_rng(training.seed)
    layers = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * 4 * 4, 32),
        nn.ReLU(),
        nn.Linear(32, 10),
    )
    steps = training.epochs * -(-len(digits.labels) // training.batch)
    optimizer = torch.optim.AdamW(layers.parameters(), lr=training.learning_rate, weight_decay=_WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    loss = nn.CrossEntropyLoss(label_smoothing=_SMOOTHING)
    images, labels = digits.tensor() / np.float32(_MAX_PIXEL), torch.from_numpy(digits.labels.astype(np.int64))
    layers.train()
    for _ in range(training.epochs):
        order = shuffle.permutation(len(images))
        for start in range(0, len(order), training.batch):
            chosen = order[start : start + training.batch]
            seen = _shifted(images[chosen], shuffle) if training.shift else images[chosen]
            optimizer.zero_grad()
            loss(layers(torch.from_numpy(seen)), labels[chosen]).backward()
            optimizer.step()
            schedule.step()
    return export_onnx(_Pixels(layers), [torch.zeros(1, 1, 8, 8)], inputs=["image"], outputs=["probabilities"])


def _shifted(images: NDArray[np.float32], randomness: np.random.Generator) -> NDArray[np.float32]:
    """Each image moved by -1, 0 or 1 pixels down and across, with empty pixels moving in."""
    padded = np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1)))
    height, width = images.shape[2:]
    moves = randomness.integers(0, 3, size=(len(images), 2))
    return np.stack(
        [image[:, y : y + height, x : x + width] for image, (y, x) in zip(padded, moves, strict=True)], dtype=np.float32
    )


class _Pixels(nn.Module):  # type: ignore[misc,unused-ignore] # nn.Module is Any where torch is not installed
    """Raw pixels in, probabilities out."""

    def __init__(self, layers: nn.Sequential) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return torch.softmax(self.layers(image / _MAX_PIXEL), dim=1)
