"""Fit the bearing autoencoder in PyTorch and write it as ONNX. Only this module needs torch, and no test does.

512-128-128-12-128-128-512 with ReLU between: 167,948 weights and biases. It sees healthy machines alone, with a
little noise on its input and none on its target, and minimises the mean squared error. Each input is standardised
by the training part's mean and deviation and the output is brought back to bels; both are folded into the first
and the last layer, so the file has six dense layers and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from models.bearing.data import Vibration
from models.export import export_onnx

_HIDDEN, _BOTTLENECK = 128, 12


@dataclass(frozen=True, kw_only=True)
class Training:
    """How long and how gently. `noise` is in deviations of each input."""

    seed: int
    epochs: int = 60
    batch: int = 64
    learning_rate: float = 2e-3
    weight_decay: float = 1e-4
    noise: float = 0.3


def fit(vibration: Vibration, training: Training) -> bytes:
    """The trained network as the bytes of an ONNX file: `spectrum` `[n, 512]` to `reconstruction` `[n, 512]`."""
    torch.manual_seed(training.seed)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    shuffle = np.random.default_rng(training.seed)
    mean, deviation = vibration.spectra.mean(axis=0), vibration.spectra.std(axis=0) + np.float32(1e-3)
    healthy = torch.from_numpy((vibration.spectra - mean) / deviation)
    scale = torch.from_numpy(deviation / deviation.mean())
    layers = _layers(vibration.spectra.shape[1])
    steps = training.epochs * -(-len(healthy) // training.batch)
    optimizer = torch.optim.AdamW(layers.parameters(), lr=training.learning_rate, weight_decay=training.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    layers.train()
    for _ in range(training.epochs):
        order = shuffle.permutation(len(healthy))
        for start in range(0, len(order), training.batch):
            clean = healthy[order[start : start + training.batch]]
            optimizer.zero_grad()
            noisy = clean + training.noise * torch.randn_like(clean)
            # in bels, as the score on the device is
            (((layers(noisy) - clean) * scale) ** 2).mean().backward()
            optimizer.step()
            schedule.step()
    _fold(layers, mean, deviation)
    example = torch.from_numpy(vibration.spectra[:1])
    return export_onnx(layers, (example,), inputs=("spectrum",), outputs=("reconstruction",))


def _layers(bands: int) -> nn.Sequential:
    widths = (bands, _HIDDEN, _HIDDEN, _BOTTLENECK, _HIDDEN, _HIDDEN, bands)
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def _fold(layers: nn.Sequential, mean: NDArray[np.float32], deviation: NDArray[np.float32]) -> None:
    """Standardise in the first layer and bring back in the last."""
    first, last = layers[0], layers[-1]
    centre, spread = torch.from_numpy(mean), torch.from_numpy(deviation)
    with torch.no_grad():
        first.weight /= spread
        first.bias -= first.weight @ centre
        last.weight *= spread[:, None]
        last.bias.mul_(spread).add_(centre)
