"""Which schemes are worth trying for a graph, likeliest to win first. Pure: a model in, schemes out.

These are bases: a search varies ranges, corrections and excluded layers from those that measure well. What never wins,
or cannot be built, is not among them: no Conv in dynamic form, no weight-only form without a layer of a whole block,
no smoothing without a layer normalisation, nothing at all (but float) without weights to quantize.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import onnx

from quantize.corrections import can_be_smoothed
from quantize.preparation.graph import Graph, attributes
from quantize.quantizers.weight_only import BLOCK_SIZES
from quantize.scheme import Form, Integer, Scheme

X86 = ("x86_64", "AMD64")
ARM = ("aarch64", "arm64")
MIN_MATRIX_SHARE = 0.1
"""Below it, forms that quantize matrices alone leave a convolutional network as fast as it was."""
_BLOCKS = (128, 32)
_ALPHAS = (0.5, 0.8)
_MATRIX_OPERATORS = ("Gemm", "MatMul")


@dataclass(frozen=True, kw_only=True)
class Weights:
    """What a graph has to quantize: convolutions, the number of rows of each matrix, and the share of the weights that
    is in matrices.
    """

    convolutions: int
    rows: tuple[int, ...]
    matrix_share: float
    has_attention: bool
    can_be_smoothed: bool


def weights_of(prepared: bytes) -> Weights:
    """What `prepared` has to quantize."""
    graph = Graph(onnx.load_from_string(prepared))
    rows, in_matrices, in_convolutions, convolutions = [], 0, 0, 0
    for node in graph.by_operator(*_MATRIX_OPERATORS):
        array = graph.float_constant(node.input[1])
        if array is not None and array.ndim == 2:
            rows.append(array.shape[1 if attributes(node).get("transB", 0) else 0])
            in_matrices += array.size
    for node in graph.by_operator("Conv", "ConvTranspose"):
        array = graph.float_constant(node.input[1])
        if array is not None:
            convolutions += 1
            in_convolutions += array.size
    return Weights(
        convolutions=convolutions,
        rows=tuple(rows),
        matrix_share=in_matrices / max(1, in_matrices + in_convolutions),
        has_attention=any(True for _ in graph.by_operator("Attention")),
        can_be_smoothed=can_be_smoothed(prepared),
    )


def candidate_schemes(prepared: bytes, *, architectures: Sequence[str] = (*X86, *ARM)) -> tuple[Scheme, ...]:
    """The schemes to screen for CPUs of `architectures` (as `platform.machine` says them), likeliest first."""
    return tuple(dict.fromkeys(_schemes(weights_of(prepared), architectures)))


def _schemes(weights: Weights, architectures: Sequence[str]) -> Iterator[Scheme]:
    has_matrices = weights.has_attention or (bool(weights.rows) and weights.matrix_share >= MIN_MATRIX_SHARE)
    on_x86 = any(name in X86 for name in architectures)
    on_arm = any(name in ARM for name in architectures)
    # a transformer's activations seldom keep to fixed ranges: what finds them while it runs comes first there
    dynamic_first = has_matrices and (weights.can_be_smoothed or weights.has_attention) and not weights.convolutions
    if dynamic_first:
        yield from _dynamic(weights)
    if weights.convolutions or weights.rows:
        yield from _static(weights, on_x86=on_x86)
    if has_matrices and not dynamic_first:
        yield from _dynamic(weights)
    if has_matrices:
        yield from _weight_only(weights)
    if on_arm and (weights.convolutions or weights.rows):
        yield _of(Form.QDQ, Integer.S8, Integer.S8, per_channel=True)
        yield _of(Form.QDQ, Integer.S8, Integer.S8)
    if on_x86 and (weights.convolutions or weights.rows):
        # exact on every CPU, and slower than u8s8 wherever that is exact too
        yield _of(Form.QDQ, Integer.U8, Integer.U8)
    if weights.convolutions or weights.rows or weights.has_attention:
        yield Scheme(form=Form.FLOAT16)


def _static(weights: Weights, *, on_x86: bool) -> Iterator[Scheme]:
    # one scale per channel costs convolutions nothing and Gemms a third of their speed
    orders = (True, False) if weights.convolutions else (False, True)
    for per_channel in orders:
        yield _of(Form.QDQ, Integer.U8, Integer.S8, per_channel=per_channel)
    for per_channel in orders:
        yield _of(Form.QOPERATOR, Integer.U8, Integer.S8, per_channel=per_channel)
    if on_x86:
        yield _of(Form.QDQ, Integer.U8, Integer.S7, per_channel=True)
    if weights.can_be_smoothed:
        for alpha in _ALPHAS:
            yield _of(Form.QDQ, Integer.U8, Integer.S8, per_channel=True, smoothing=alpha)
    if weights.convolutions and weights.rows:
        operators = ("Conv", "Relu", "Clip", "MaxPool")
        yield _of(Form.QDQ, Integer.U8, Integer.S8, per_channel=True, operators=operators)
    if weights.can_be_smoothed and not weights.convolutions:
        yield _of(Form.QDQ, Integer.U8, Integer.S8, per_channel=True, operators=("Gemm", "MatMul"))


def _dynamic(weights: Weights) -> Iterator[Scheme]:
    for per_channel in (False, True):
        yield _of(Form.DYNAMIC, Integer.U8, Integer.S8, per_channel=per_channel)
    if weights.can_be_smoothed:
        for alpha in _ALPHAS:
            yield _of(Form.DYNAMIC, Integer.U8, Integer.S8, per_channel=True, smoothing=alpha)


def _weight_only(weights: Weights) -> Iterator[Scheme]:
    largest = max(weights.rows, default=0)
    for integer in (Integer.S8, Integer.S4):
        for block in _BLOCKS:
            if block in BLOCK_SIZES and largest >= block:
                yield Scheme(form=Form.WEIGHT_ONLY, weights=integer, block_size=block)


def _of(
    form: Form,
    activations: Integer,
    weights: Integer,
    *,
    per_channel: bool = False,
    operators: tuple[str, ...] = (),
    smoothing: float = 0.0,
) -> Scheme:
    return Scheme(
        form=form,
        activations=activations,
        weights=weights,
        per_channel=per_channel,
        operators=operators,
        smoothing=smoothing,
    )
