"""Read a model once, refuse what cannot be quantized with one clear error, and settle its shapes.

What leaves `read_model` is one self-contained, checked ONNX file of at most MAX_MODEL_BYTES, opset MIN_OPSET or later,
with fp32 weights and no quantized operator; what leaves `fix_shapes` varies in nothing but the batch (axis 0).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx
from onnx import ModelProto, TensorProto, ValueInfoProto, external_data_helper, inliner, version_converter

from quantize.errors import InvalidModelError, InvalidOptionError
from quantize.preparation.equality import Reference, first_line
from quantize.preparation.graph import Graph

MIN_OPSET = 13
MAX_MODEL_BYTES = 2**31 - 1
_RAISED_OPSETS = (13, 15, 17, 18)
_QUANTIZED_OPERATORS = {
    "ConvInteger", "MatMulInteger", "QLinearConv", "QLinearMatMul", "QLinearAdd", "QLinearMul", "QGemm",
    "QAttention", "DynamicQuantizeLinear", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM", "MatMulIntegerToFloat",
    "MatMulNBits", "MatMulBnb4", "QLinearSigmoid", "QLinearLeakyRelu", "QLinearAveragePool",
    "QLinearGlobalAveragePool", "QLinearConcat", "QLinearSoftmax", "QEmbedLayerNormalization",
}  # fmt: skip


def read_model(path_or_bytes: Path | bytes, *, source: str) -> bytes:
    """The model as one file's bytes; weights kept beside the file are taken in. `source` names it in errors.

    Raises InvalidOptionError when the file cannot be read, and InvalidModelError when it is no ONNX model, is larger
    than MAX_MODEL_BYTES with its weights, has an opset that cannot be raised to MIN_OPSET, has no fp32 weights, or
    is quantized already.
    """
    model = _parsed(path_or_bytes, source)
    if model.functions:
        model = inliner.inline_local_functions(model)
    size = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    if max(size, model.ByteSize()) > MAX_MODEL_BYTES:
        raise InvalidModelError(f"{source} is larger than 2 GiB with its weights: edge models must be smaller")
    try:
        onnx.checker.check_model(model)
    except Exception as error:  # noqa: BLE001 - onnx raises many kinds for a file that is no model
        raise InvalidModelError(f"{source} is not an ONNX model: {first_line(error)}") from None
    _refuse_other_precisions(model, source)
    return bytes(_with_opset(model, source).SerializeToString(deterministic=True))


def fix_shapes(model: bytes, shapes: Mapping[str, Sequence[int]], *, source: str) -> bytes:
    """The model with the dimensions of its inputs set: one number per axis in `shapes`, -1 keeps what is there.

    The batch (axis 0) stays dynamic where it was. A symbol that stands for several dimensions is set in all of them.
    Raises InvalidOptionError for an input or a shape that does not fit, and InvalidModelError for a dimension other
    than the batch that stays dynamic.
    """
    parsed = onnx.load_from_string(model)
    inputs = _real_inputs(parsed)
    unknown = sorted(set(shapes) - set(inputs))
    if unknown:
        raise InvalidOptionError(f"{source} has no input {unknown[0]!r}; its inputs are {', '.join(inputs)}")
    symbols: dict[str, int] = {}
    for name, sizes in shapes.items():
        symbols |= _set_shape(inputs[name], sizes, source)
    if shapes:
        for value in (*inputs.values(), *parsed.graph.output):
            for axis, dim in enumerate(value.type.tensor_type.shape.dim):
                if axis and dim.dim_param in symbols:
                    dim.dim_value = symbols[dim.dim_param]
        # what was inferred from the symbols is stale now
        del parsed.graph.value_info[:]
        _forget_output_sizes(parsed)
    require_known_shapes(parsed, source)
    if not shapes:
        return model
    inferred = onnx.shape_inference.infer_shapes(parsed, data_prop=True)
    del inferred.graph.value_info[:]
    return bytes(inferred.SerializeToString(deterministic=True))


def require_known_shapes(model: ModelProto, source: str) -> None:
    """Raise InvalidModelError, which shows the remedy, for a dimension that varies and is not the batch."""
    for name, value in _real_inputs(model).items():
        if not value.type.HasField("tensor_type") or not value.type.tensor_type.HasField("shape"):
            raise InvalidModelError(f"input {name!r} of {source} has no shape: export it with one")
        dims = value.type.tensor_type.shape.dim
        for axis, dim in enumerate(dims):
            if axis and not dim.HasField("dim_value"):
                known = [str(other.dim_value) if other.HasField("dim_value") else "?" for other in dims]
                raise InvalidModelError(
                    f"axis {axis} of input {name!r} of {source} is dynamic ({dim.dim_param or 'unnamed'}): only the "
                    f"batch may be; give it, such as --shape {name}=1,3,224,224 (known: {','.join(known)})"
                )


def _parsed(path_or_bytes: Path | bytes, source: str) -> ModelProto:
    if isinstance(path_or_bytes, bytes):
        content, folder = path_or_bytes, None
    else:
        folder = path_or_bytes.parent
        try:
            if path_or_bytes.stat().st_size > MAX_MODEL_BYTES:
                raise InvalidModelError(f"{source} is larger than 2 GiB: edge models must be smaller")
            content = path_or_bytes.read_bytes()
        except OSError as error:
            raise InvalidOptionError(f"cannot read {source}: {error.strerror or error}") from None
    try:
        model = onnx.load_from_string(content)
    except Exception as error:  # noqa: BLE001 - protobuf raises its own kind for bytes that are no message
        raise InvalidModelError(f"{source} is not an ONNX model: {first_line(error)}") from None
    if not model.graph.node:
        raise InvalidModelError(f"{source} is not an ONNX model: it has no operators")
    outside = [tensor for tensor in _tensors(model) if external_data_helper.uses_external_data(tensor)]
    if outside:
        _take_in(model, outside, folder, source)
    return model


def _take_in(model: ModelProto, outside: Sequence[TensorProto], folder: Path | None, source: str) -> None:
    named = {external_data_helper.ExternalDataInfo(tensor).location for tensor in outside}
    if folder is None:
        raise InvalidModelError(f"{source} keeps weights in other files ({', '.join(sorted(named))}): give its path")
    missing = sorted(name for name in named if not Path(folder, name).is_file())
    if missing:
        raise InvalidModelError(f"{source} keeps weights in {missing[0]}, which is not beside it: copy it there")
    if sum(Path(folder, name).stat().st_size for name in named) > MAX_MODEL_BYTES:
        raise InvalidModelError(f"{source} is larger than 2 GiB with its weights: edge models must be smaller")
    try:
        external_data_helper.load_external_data_for_model(model, str(folder))
    except Exception as error:  # noqa: BLE001 - onnx raises several kinds for a bad location, offset or length
        raise InvalidModelError(f"the weights beside {source} cannot be read: {first_line(error)}") from None


def _tensors(model: ModelProto) -> list[TensorProto]:
    stored = list(model.graph.initializer)
    stored += [a.t for node in model.graph.node for a in node.attribute if a.HasField("t")]
    return stored


def _refuse_other_precisions(model: ModelProto, source: str) -> None:
    graph = Graph(model)
    known = set(graph.constants())
    for node in graph.nodes:
        if node.op_type in _QUANTIZED_OPERATORS or (
            node.op_type in ("QuantizeLinear", "DequantizeLinear") and node.input[0] not in known
        ):
            raise InvalidModelError(f"{source} is quantized already ({node.op_type}): give the fp32 model it came from")
        if all(name in known for name in node.input):
            known.update(node.output)
    types = {tensor.data_type for tensor in _tensors(model)}
    # a model without any (trees keep their numbers in attributes) ships as it is, measured and with its references
    if TensorProto.FLOAT not in types and not types.isdisjoint((TensorProto.FLOAT16, TensorProto.BFLOAT16)):
        raise InvalidModelError(f"{source} has 16-bit weights: export it as fp32")


def opset_of(model: bytes) -> int:
    """The opset of the standard operators in a model that was read or made here."""
    return _opset(onnx.load_from_string(model))


def _opset(model: ModelProto) -> int:
    return max((int(entry.version) for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)


def _with_opset(model: ModelProto, source: str) -> ModelProto:
    opset = _opset(model)
    if opset >= MIN_OPSET:
        return model
    refusal = InvalidModelError(
        f"{source} has opset {opset}, which is too old and cannot be raised: export it with {MIN_OPSET} or later"
    )
    try:
        reference = Reference(bytes(model.SerializeToString()))
    except InvalidModelError:
        raise refusal from None
    for target in _RAISED_OPSETS:
        try:
            raised = version_converter.convert_version(model, target)
            onnx.checker.check_model(raised)
        except Exception:  # noqa: BLE001, S112 - the converter raises many kinds; the next target may do
            continue
        if reference.difference(bytes(raised.SerializeToString())) is None:
            return raised
    raise refusal


def _real_inputs(model: ModelProto) -> dict[str, ValueInfoProto]:
    stored = {tensor.name for tensor in model.graph.initializer}
    return {value.name: value for value in model.graph.input if value.name not in stored}


def _set_shape(value: ValueInfoProto, sizes: Sequence[int], source: str) -> dict[str, int]:
    dims = value.type.tensor_type.shape.dim
    given = f"--shape {value.name}={','.join(map(str, sizes))}"
    if len(dims) != len(sizes):
        raise InvalidOptionError(f"{given} has {len(sizes)} numbers, input {value.name!r} of {source} {len(dims)} axes")
    symbols: dict[str, int] = {}
    for axis, (dim, size) in enumerate(zip(dims, sizes, strict=True)):
        if size == -1:
            continue
        if size < 1:
            raise InvalidOptionError(f"{given}: a size is at least 1, or -1 to keep what is there")
        if dim.HasField("dim_value"):
            if dim.dim_value != size:
                raise InvalidOptionError(f"{given}: axis {axis} of {source} is fixed at {dim.dim_value}")
        elif axis:
            if dim.dim_param:
                symbols[dim.dim_param] = size
            dim.dim_value = size
    return symbols


def _forget_output_sizes(model: ModelProto) -> None:
    for value in model.graph.output:
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if axis and not dim.HasField("dim_value"):
                dim.ClearField("dim_param")
