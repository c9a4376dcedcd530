"""Rewrite an fp32 model so that it computes the same numbers faster on a CPU and quantizes better.

Order, and why: constants first, because every other rewrite looks at stored weights; then what hides layers (shape
arithmetic, no-ops); then what layers take in; then the forms of layers; last the layout of the input and of channels.

Invariants:
1. The result answers as the original does (`quantize.preparation.equality`), with the same inputs and outputs.
2. All rewrites are tried together first. When that changes an answer, or does not load, each is tried alone on what
   the ones before it left, and the ones that fail are dropped and named.
3. The same model and options give the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import onnx

from quantize.preparation.attention import fuse_self_attention
from quantize.preparation.channels import pad_channels
from quantize.preparation.convolutions import (
    fold_affine_after,
    fold_affine_before,
    fold_input_transpose,
    fold_padding,
    pool_by_operator,
)
from quantize.preparation.equality import Arrays, Reference, first_line
from quantize.preparation.folding import drop_no_ops, fold_constants, fold_shapes
from quantize.preparation.graph import Graph
from quantize.preparation.linear import drop_turns, matmul_to_gemm, sequences_to_rows
from quantize.preparation.reading import require_known_shapes
from quantize.preparation.sequences import fuse_gelu, fuse_layer_normalization

Rewrite = tuple[str, Callable[[Graph], int]]

_ATTENTION = "attention put together"
_PADDING = "channels of convolutions padded"

REWRITES: tuple[Rewrite, ...] = (
    ("constants folded", fold_constants),
    ("shapes computed once", fold_shapes),
    ("nodes without effect dropped", drop_no_ops),
    ("LayerNormalization put together", fuse_layer_normalization),
    ("GELU put together", fuse_gelu),
    ("padding folded into convolutions", fold_padding),
    ("scales and offsets folded into the layers before them", fold_affine_after),
    ("scales and offsets folded into the layers after them", fold_affine_before),
    ("means over the image by GlobalAveragePool", pool_by_operator),
    (_ATTENTION, fuse_self_attention),
    ("transposes without effect dropped", drop_no_ops),
    ("turns there and back dropped", drop_turns),
    ("sequences as rows", sequences_to_rows),
    ("products joined with their biases", matmul_to_gemm),
    ("views without effect dropped", drop_no_ops),
    ("input transposes folded into convolutions", fold_input_transpose),
)


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """The rewritten `model`, and in words what was rewritten and what was tried and dropped."""

    model: bytes
    rewrites: tuple[str, ...]


def prepare(
    model: bytes, *, samples: Arrays | None = None, blocked_channels: int = 0, fuse_attention: bool = False
) -> Prepared:
    """The model of `read_model` and `fix_shapes`, rewritten; verified on made-up inputs, and on `samples` too.

    `samples` are arrays `[n, ...]` by input name that the model takes in one run. `blocked_channels` pads the channels
    of convolutions to a multiple of it where that lets ONNX Runtime keep its blocked layout (16 for AVX-512; 0 pads
    nothing): it costs time on a CPU with smaller blocks. `fuse_attention` makes self-attention one operator, its
    projections within: faster in float, but a quantizer then sees no Gemm in it. Raises InvalidModelError when the
    model does not run.
    """
    require_known_shapes(onnx.load_from_string(model), "the model")
    reference = Reference(model, samples=samples)
    rewrites = REWRITES if fuse_attention else tuple(entry for entry in REWRITES if entry[0] != _ATTENTION)
    if blocked_channels:
        rewrites += ((_PADDING, lambda graph: pad_channels(graph, blocked_channels)),)
    together = _rewritten(model, rewrites)
    if isinstance(together, Prepared) and reference.difference(together.model) is None:
        return together
    return _one_by_one(model, rewrites, reference)


def _rewritten(model: bytes, rewrites: tuple[Rewrite, ...]) -> Prepared | str:
    """All `rewrites` one after the other, or why one of them failed."""
    try:
        graph = Graph.of_bytes(model)
        done = []
        for words, rewrite in rewrites:
            count = rewrite(graph)
            if count:
                graph.tidy()
                graph.infer_shapes()
                done.append(f"{words} ({count})")
        return Prepared(model=_serialised(graph), rewrites=tuple(done))
    except Exception as error:  # noqa: BLE001 - a rewrite that trips over a graph is dropped, never the model
        return first_line(error)


def _one_by_one(model: bytes, rewrites: tuple[Rewrite, ...], reference: Reference) -> Prepared:
    done: list[str] = []
    best = _rewritten(model, ())
    current = best.model if isinstance(best, Prepared) and reference.difference(best.model) is None else model
    for rewrite in rewrites:
        after = _rewritten(current, (rewrite,))
        reason = after if isinstance(after, str) else reference.difference(after.model)
        if isinstance(after, Prepared) and reason is None:
            done += after.rewrites
            current = after.model if after.rewrites else current
        else:
            done.append(f"left out: {rewrite[0]}: {reason}")
    return Prepared(model=current, rewrites=tuple(done))


def _serialised(graph: Graph) -> bytes:
    model = graph.proto()
    model.doc_string = ""
    for node in model.graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
    return bytes(model.SerializeToString(deterministic=True))
