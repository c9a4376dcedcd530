"""Fit the language network in PyTorch and write it as ONNX. Only this module needs torch, and no test does.

Each position starts as the sum of learnt vectors for its byte, the byte before, the byte after and the place; then
two layers of self-attention and a GELU network, each with a residual and a layer normalisation after it; the mean over
the positions that hold text; one dense layer and the softmax. Reading the neighbours costs three look-ups and no
product, and spares a small network from spending its first layer on pairs of letters.

The network is written so that ONNX Runtime and its optimizer find their patterns: query, key and value are products
of their own, the mask is made last and added before the softmax, and normalisation comes after the residual. One
pattern it must not find, see `without_skip_normalisation`.

Measured with torch 2.13.0 on one CPU thread; another torch may give other weights of the same quality.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import nn

from models.export import export_onnx
from models.tiny_transformer.catalogues import Phrase
from models.tiny_transformer.data import INPUT, LABELS, classes
from models.tiny_transformer.tokenizer import MAX_BYTES, PADDING, VOCABULARY, tokenize

OUTPUT = "probabilities"
WIDTH, HEADS, INNER, LAYERS = 96, 4, 192, 2

_MASKED = -10_000.0
_SMOOTHING = 0.05
_WEIGHT_DECAY = 0.05
_WARM_UP_SHARE = 0.1
_MAX_GRADIENT = 1.0
_BUCKET_BATCHES = 16


@dataclass(frozen=True, kw_only=True)
class Training:
    """How long to train, and how the phrases are varied: the shares that are cut, and written in small or capital
    letters. `balance` 1 shows every language alike often, 0 as often as it has phrases.
    """

    epochs: int
    seed: int
    batch: int = 64
    learning_rate: float = 2e-3
    dropout: float = 0.1
    cut: float = 0.5
    lower: float = 0.25
    upper: float = 0.05
    balance: float = 0.5


def fit(phrases: Sequence[Phrase], training: Training) -> bytes:
    """The trained network as the bytes of an ONNX file, input `tokens`, output `probabilities`."""
    torch.manual_seed(training.seed)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    randomness = np.random.default_rng(training.seed)
    labels = classes(phrases)
    network = Network(dropout=training.dropout)
    optimizer = torch.optim.AdamW(network.parameters(), lr=training.learning_rate, weight_decay=_WEIGHT_DECAY)
    steps = training.epochs * -(-len(phrases) // training.batch)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step / steps))
    loss = nn.CrossEntropyLoss(label_smoothing=_SMOOTHING)
    chances = (1.0 / np.bincount(labels, minlength=len(LABELS))[labels]) ** training.balance
    chances /= chances.sum()
    network.train()
    for _ in range(training.epochs):
        chosen = randomness.choice(len(phrases), size=len(phrases), p=chances)
        tokens = tokenize([_varied(phrases[index].text, training, randomness) for index in chosen])
        for places in _batches(tokens, training.batch, randomness):
            seen = torch.from_numpy(_trimmed(tokens[places]))
            optimizer.zero_grad()
            loss(network(seen), torch.from_numpy(labels[chosen[places]])).backward()
            nn.utils.clip_grad_norm_(network.parameters(), _MAX_GRADIENT)
            optimizer.step()
            schedule.step()
    example = torch.zeros(1, MAX_BYTES, dtype=torch.int64)
    return without_skip_normalisation(
        export_onnx(_Probabilities(network), (example,), inputs=(INPUT,), outputs=(OUTPUT,))
    )


def without_skip_normalisation(model: bytes) -> bytes:
    """The same network with `Sum` for each `Add` before a LayerNormalization.

    ONNX Runtime 1.32 fuses such an Add into SkipLayerNormalization in some quantized forms of this network, and that
    kernel takes more than twice the time of the two it replaces. A Sum of two is as fast as an Add and is left alone.
    """
    loaded = onnx.load_from_string(model)
    normalised = {node.input[0] for node in loaded.graph.node if node.op_type == "LayerNormalization"}
    for node in loaded.graph.node:
        if node.op_type == "Add" and node.output[0] in normalised:
            node.op_type = "Sum"
    onnx.checker.check_model(loaded, full_check=True)
    return bytes(loaded.SerializeToString(deterministic=True))


class _Attention(nn.Module):  # type: ignore[misc,unused-ignore] # nn.Module is Any where torch is not installed
    """Multi-head self-attention: states `[n, t, WIDTH]` and a mask to add `[n, 1, 1, t]` to states."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        query, key, value = (self._heads(layer(states)) for layer in (self.query, self.key, self.value))
        scores = torch.matmul(query, key.transpose(-1, -2)) / math.sqrt(WIDTH // HEADS) + mask
        mixed = torch.matmul(torch.softmax(scores, dim=-1), value).permute(0, 2, 1, 3)
        return self.out(mixed.reshape(-1, _time(states), WIDTH))

    def _heads(self, states: torch.Tensor) -> torch.Tensor:
        return states.reshape(-1, _time(states), HEADS, WIDTH // HEADS).permute(0, 2, 1, 3)


class _Layer(nn.Module):  # type: ignore[misc,unused-ignore] # as above
    """One encoder layer, with normalisation after each residual."""

    def __init__(self, *, dropout: float) -> None:
        super().__init__()
        self.attention = _Attention()
        self.inner, self.outer = nn.Linear(WIDTH, INNER), nn.Linear(INNER, WIDTH)
        self.attention_norm, self.outer_norm = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.dropout = nn.Dropout(dropout)

    def forward(self, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        states = self.attention_norm(states + self.dropout(self.attention(states, mask)))
        mixed = self.outer(nn.functional.gelu(self.inner(states)))
        return self.outer_norm(states + self.dropout(mixed))


class Network(nn.Module):  # type: ignore[misc,unused-ignore] # as above
    """Tokens `[n, t]` to logits `[n, classes]`, for any t up to MAX_BYTES."""

    def __init__(self, *, dropout: float) -> None:
        super().__init__()
        self.byte, self.before, self.after = (nn.Embedding(VOCABULARY, WIDTH) for _ in range(3))
        self.place = nn.Parameter(torch.randn(MAX_BYTES, WIDTH) * 0.02)
        for table in (self.byte, self.before, self.after):
            nn.init.normal_(table.weight, std=0.3)
        self.norm = nn.LayerNorm(WIDTH)
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(_Layer(dropout=dropout) for _ in range(LAYERS))
        self.classify = nn.Linear(WIDTH, len(LABELS))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        padded = nn.functional.pad(tokens, (1, 1), value=PADDING)
        states = self.byte(tokens) + self.before(padded[:, :-2]) + self.after(padded[:, 2:])
        states = self.dropout(self.norm(states + self.place[: _time(tokens)]))
        present = tokens != PADDING
        mask = (1.0 - present[:, None, None, :].to(states.dtype)) * _MASKED
        for layer in self.layers:
            states = layer(states, mask)
        text = present.to(states.dtype)
        weights = text / text.sum(dim=1, keepdim=True).clamp(min=1.0)
        return self.classify(torch.matmul(weights[:, None, :], states)[:, 0])


class _Probabilities(nn.Module):  # type: ignore[misc,unused-ignore] # as above
    """Tokens in, probabilities out."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return torch.softmax(self.network(tokens), dim=1)


def _time(states: torch.Tensor) -> int:
    # an int is a constant of the exported graph, which has one length; a traced size would be nodes of every layer
    return int(states.shape[1])


def _rate(done: float) -> float:
    """The share of the learning rate when a share `done` of the steps is done: a warm-up, then a cosine."""
    if done < _WARM_UP_SHARE:
        return done / _WARM_UP_SHARE
    return 0.5 * (1.0 + math.cos(math.pi * (done - _WARM_UP_SHARE) / (1.0 - _WARM_UP_SHARE)))


def _varied(text: str, training: Training, randomness: np.random.Generator) -> str:
    """The text as somebody else might have sent it: some of its words, or in other letters."""
    if randomness.random() < training.cut:
        words = text.split(" ")
        first = int(randomness.integers(len(words)))
        last = int(randomness.integers(first, len(words))) + 1
        part = " ".join(words[first:last])
        text = part if sum(map(str.isalpha, part)) >= min(8, len(text)) else " ".join(words[first // 2 :])
    case = randomness.random()
    if case < training.lower:
        return text.lower()
    return text.upper() if case > 1 - training.upper else text


def _batches(tokens: NDArray[np.int64], size: int, randomness: np.random.Generator) -> Iterator[NDArray[np.int64]]:
    """Places `[size]` of phrases of like length, so that little padding is computed; each place once."""
    order = randomness.permutation(len(tokens)).astype(np.int64)
    lengths = (tokens != PADDING).sum(axis=1)
    pools = [order[start : start + size * _BUCKET_BATCHES] for start in range(0, len(order), size * _BUCKET_BATCHES)]
    batches = []
    for pool in pools:
        by_length = pool[np.argsort(lengths[pool], kind="stable")]
        batches += [by_length[start : start + size] for start in range(0, len(by_length), size)]
    for index in randomness.permutation(len(batches)):
        yield batches[index]


def _trimmed(tokens: NDArray[np.int64]) -> NDArray[np.int64]:
    """Without the columns that are padding in every row."""
    return tokens[:, : max(1, int((tokens != PADDING).sum(axis=1).max()))]
