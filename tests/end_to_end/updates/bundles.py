"""Bundles to update with: the real digits versions, signed here, and versions that are bad on purpose.

A bad version is a real ONNX file with golden vectors that it passes, unless its fault is to fail them.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edge_agent.runtime.session import Model
from fleet_protocol.bundle_folder import file_path, read_manifest
from fleet_protocol.envelope import MANIFEST_TYPE, sign_envelope
from fleet_protocol.keys import PrivateKey
from fleet_protocol.manifest import Artifact, Manifest, bundle_digest, encode_manifest

MODEL = "digits"
_DIGITS = Path(__file__).resolve().parents[3] / "models" / MODEL
_SLOW_SIDE = 512
_SLOW_PRODUCTS = 4
_HEAVY_BYTES = 4 * 1024 * 1024
_FULL_INK = 15.5
_STUCK_KERNEL = 2_000_000
"""One output of the pool takes a millisecond, and there are as many as the kernel is long."""

Image = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Keys:
    """Who signs: two release keys, both needed, one director key, and a stranger nobody trusts."""

    release: tuple[PrivateKey, PrivateKey] = field(
        default_factory=lambda: (PrivateKey.generate(), PrivateKey.generate())
    )
    director: PrivateKey = field(default_factory=PrivateKey.generate)
    stranger: PrivateKey = field(default_factory=PrivateKey.generate)


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A signed version: everything a server would serve of it."""

    manifest: Manifest
    envelope: bytes
    files: dict[str, bytes]

    @property
    def digest(self) -> str:
        """What a desired state names."""
        return bundle_digest(self.envelope)

    @property
    def version(self) -> str:
        """The manifest's version."""
        return self.manifest.version

    @property
    def model_sha256(self) -> str:
        """The digest of its ONNX file."""
        return self.manifest.variants[0].file.sha256

    def served(self) -> dict[str, bytes]:
        """Every file by its digest."""
        return {self.digest: self.envelope, **self.files}

    def probabilities(self, image: Image) -> NDArray[np.float32]:
        """What this version's model, and no other, answers."""
        answers: NDArray[np.float32] = _run(self.files[self.model_sha256], image[None])[0]
        return answers


def sign(manifest: Manifest, files: dict[str, bytes], signers: tuple[PrivateKey, ...]) -> Bundle:
    """The bundle as these keys sign it."""
    envelope = sign_envelope(MANIFEST_TYPE, encode_manifest(manifest), signers)
    return Bundle(manifest=manifest, envelope=envelope, files=files)


def digits(version: str, signers: tuple[PrivateKey, ...]) -> Bundle:
    """A version of the real digits model, with its float file alone: what answers is known on every machine."""
    folder = _DIGITS / "bundles" / version
    manifest = read_manifest(folder)
    manifest = msgspec.structs.replace(manifest, variants=manifest.variants[:1])
    files = {artifact.sha256: file_path(folder, artifact.sha256).read_bytes() for artifact in manifest.artifacts()}
    return sign(manifest, files, signers)


def with_wrong_golden_vectors(base: Bundle, signers: tuple[PrivateKey, ...]) -> Bundle:
    """The same model, shipped with outputs that it does not give."""
    with np.load(io.BytesIO(base.files[base.manifest.golden.sha256]), allow_pickle=False) as arrays:
        golden = {name: arrays[name] + 0.5 if name.startswith("output:") else arrays[name] for name in arrays.files}
    return _remade(base, base.version, base.files[base.model_sha256], golden, signers)


def not_a_model(base: Bundle, signers: tuple[PrivateKey, ...]) -> Bundle:
    """A signed version whose model file is no ONNX."""
    golden = {
        "input:image": np.zeros((1, 1, 8, 8), np.float32),
        f"output:{base.manifest.variants[0].name}:probabilities": np.zeros((1, 10), np.float32),
    }
    return _remade(base, base.version, b"not an ONNX file" * 100, golden, signers)


def failing_on_real_digits(base: Bundle, version: str, signers: tuple[PrivateKey, ...]) -> Bundle:
    """Right on the blank image of its golden vectors; any ink makes its Gather reach outside its data."""
    one = numpy_helper.from_array(np.array(1000, np.int64), "far_outside")
    zeros = numpy_helper.from_array(np.zeros(10, np.float32), "ten_zeros")
    nodes = [
        *_is_real(),
        helper.make_node("Mul", ["zero_or_one", "far_outside"], ["index"]),
        helper.make_node("Gather", ["ten_zeros", "index"], ["addend"]),
    ]
    return _with_addend(base, version, nodes, [one, zeros, _scalar("threshold", 0.0)], signers)


def slow(base: Bundle, version: str, signers: tuple[PrivateKey, ...]) -> Bundle:
    """The right answers, after large matrix products whose result is zero."""
    matrix = numpy_helper.from_array(np.zeros((_SLOW_SIDE, _SLOW_SIDE), np.float32), "zero_matrix")
    nodes = [
        helper.make_node("ReduceMax", ["image"], ["ink"], keepdims=0),
        helper.make_node("Mul", ["zero_matrix", "ink"], ["product_0"]),
        *(
            helper.make_node("MatMul", [f"product_{place}", "product_0"], [f"product_{place + 1}"])
            for place in range(_SLOW_PRODUCTS)
        ),
        helper.make_node("ReduceMax", [f"product_{_SLOW_PRODUCTS}"], ["addend"], keepdims=0),
    ]
    return _with_addend(base, version, nodes, [matrix], signers)


def looping(base: Bundle, version: str, signers: tuple[PrivateKey, ...]) -> Bundle:
    """The right answers, after a loop that a real digit keeps going for hours; ONNX Runtime can cancel it."""
    trips = numpy_helper.from_array(np.array(1 << 50, np.int64), "trips")
    true = numpy_helper.from_array(np.array(True), "true")
    scalar = TensorProto.FLOAT
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go_on"], ["still_go_on"]),
            helper.make_node("Sin", ["carried"], ["carried_on"]),
        ],
        "turn",
        [
            helper.make_tensor_value_info("turn_number", TensorProto.INT64, []),
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("carried", scalar, []),
        ],
        [
            helper.make_tensor_value_info("still_go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("carried_on", scalar, []),
        ],
    )
    nodes = [
        *_is_real(),
        helper.make_node("Mul", ["zero_or_one", "trips"], ["real_trips"]),
        helper.make_node("Mul", ["ink", "zero"], ["nothing"]),
        helper.make_node("Loop", ["real_trips", "true", "nothing"], ["addend"], body=body),
    ]
    return _with_addend(base, version, nodes, [trips, true, *_real_digits()], signers)


def stuck(base: Bundle, version: str, signers: tuple[PrivateKey, ...]) -> Bundle:
    """The right answers, after one operator that a real digit keeps busy for hours; nothing can cancel it."""
    length = numpy_helper.from_array(np.array([_STUCK_KERNEL], np.int64), "kernel_length")
    ones = numpy_helper.from_array(np.array([1, 1], np.int64), "one_and_one")
    first = numpy_helper.from_array(np.array([0], np.int64), "first")
    nodes = [
        *_is_real(),
        helper.make_node("Unsqueeze", ["zero_or_one", "first"], ["zero_or_one_long"]),
        helper.make_node("Mul", ["zero_or_one_long", "kernel_length"], ["more"]),
        helper.make_node("Add", ["kernel_length", "more"], ["length"]),
        helper.make_node("Concat", ["one_and_one", "length"], ["shape"], axis=0),
        helper.make_node("Mul", ["ink", "zero"], ["nothing"]),
        helper.make_node("Expand", ["nothing", "shape"], ["row"]),
        helper.make_node("AveragePool", ["row"], ["pooled"], kernel_shape=[_STUCK_KERNEL]),
        helper.make_node("ReduceMax", ["pooled"], ["addend"], keepdims=0),
    ]
    return _with_addend(base, version, nodes, [length, ones, first, *_real_digits()], signers)


def answering_otherwise(base: Bundle, version: str, signers: tuple[PrivateKey, ...]) -> Bundle:
    """Right on the blank image of its golden vectors; on real digits its classes are turned round."""
    backwards = numpy_helper.from_array(np.arange(9, -1, -1, dtype=np.int64), "backwards")
    forwards = numpy_helper.from_array(np.arange(10, dtype=np.int64), "forwards")
    model = onnx.load_from_string(base.files[base.model_sha256])
    last = next(node for node in model.graph.node if "probabilities" in node.output)
    last.output[0] = "right"
    model.graph.node.extend(
        [
            *_is_real(),
            helper.make_node("Cast", ["zero_or_one"], ["is_ink"], to=TensorProto.BOOL),
            helper.make_node("Where", ["is_ink", "backwards", "forwards"], ["order"]),
            helper.make_node("Gather", ["right", "order"], ["probabilities"], axis=1),
        ]
    )
    model.graph.initializer.extend([backwards, forwards, *_real_digits()])
    return _with_own_golden(base, version, model.SerializeToString(), signers)


def with_variants(base: Bundle, signers: tuple[PrivateKey, ...]) -> Bundle:
    """The same model as `slow`, `int8` and `wrong`, whose golden vectors it does not give, with files for people."""
    int8 = base.manifest.variants[0]
    blank = np.zeros((1, 1, 8, 8), np.float32)
    padded = onnx.load_from_string(base.files[base.model_sha256])
    padded.graph.initializer.append(numpy_helper.from_array(np.zeros(100, np.uint8), "ballast"))
    slower = slow(base, base.version, signers)
    models = {
        "slow": slower.files[slower.model_sha256],
        "int8": base.files[base.model_sha256],
        "wrong": padded.SerializeToString(),
    }
    golden = {"input:image": blank}
    golden |= {f"output:{name}:probabilities": _run(model, blank) for name, model in models.items()}
    golden["output:wrong:probabilities"] = golden["output:wrong:probabilities"] + np.float32(0.5)
    contents = {**models, "golden": _packed(golden), "card": b"# Digits", "report": b"<html></html>"}
    artifacts = {
        name: Artifact(sha256=hashlib.sha256(content).hexdigest(), size_bytes=len(content))
        for name, content in contents.items()
    }
    manifest = msgspec.structs.replace(
        base.manifest,
        variants=[msgspec.structs.replace(int8, name=name, file=artifacts[name]) for name in models],
        golden=artifacts["golden"],
        card=artifacts["card"],
        report=artifacts["report"],
    )
    return sign(manifest, {artifacts[name].sha256: content for name, content in contents.items()}, signers)


def heavy(base: Bundle, version: str, signers: tuple[PrivateKey, ...], *, seed: int) -> Bundle:
    """A right model whose file takes many chunks to fetch; another seed makes another file."""
    model = onnx.load_from_string(base.files[base.model_sha256])
    noise = np.random.default_rng(seed).bytes(_HEAVY_BYTES)
    model.graph.initializer.append(numpy_helper.from_array(np.frombuffer(noise, np.uint8), "ballast"))
    return _with_own_golden(base, version, model.SerializeToString(), signers)


@cache
def clear_digit() -> tuple[Image, str]:
    """A real image that every digits version, also the broken one, reads right, and its label."""
    with np.load(_DIGITS / "holdout.npz", allow_pickle=False) as holdout:
        images, labels = holdout["images"].astype(np.float32)[:, None], holdout["labels"]
    right = np.ones(len(labels), bool)
    for version in ("1.0.0", "1.1.0", "1.2.0"):
        bundle = digits(version, ())
        right &= _run(bundle.files[bundle.model_sha256], images).argmax(axis=1) == labels
    chosen = int(np.flatnonzero(right)[0])
    return images[chosen], str(labels[chosen])


def _is_real() -> list[onnx.NodeProto]:
    """`zero_or_one` is 1 for an image with more ink somewhere than the initializer `threshold`."""
    return [
        helper.make_node("ReduceMax", ["image"], ["ink"], keepdims=0),
        helper.make_node("Greater", ["ink", "threshold"], ["is_real"]),
        helper.make_node("Cast", ["is_real"], ["zero_or_one"], to=TensorProto.INT64),
    ]


def _real_digits() -> list[onnx.TensorProto]:
    """A threshold that images made up for warming do not reach."""
    return [_scalar("threshold", _FULL_INK), _scalar("zero", 0.0)]


def _scalar(name: str, value: float) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array(value, np.float32), name)


def _with_addend(
    base: Bundle,
    version: str,
    nodes: list[onnx.NodeProto],
    initializers: list[onnx.TensorProto],
    signers: tuple[PrivateKey, ...],
) -> Bundle:
    """The base model with the scalar `addend` of `nodes`, always zero, added to its output."""
    model = onnx.load_from_string(base.files[base.model_sha256])
    last = next(node for node in model.graph.node if "probabilities" in node.output)
    last.output[0] = "before_addend"
    model.graph.node.extend([*nodes, helper.make_node("Add", ["before_addend", "addend"], ["probabilities"])])
    model.graph.initializer.extend(initializers)
    return _with_own_golden(base, version, model.SerializeToString(), signers)


def _with_own_golden(base: Bundle, version: str, model: bytes, signers: tuple[PrivateKey, ...]) -> Bundle:
    blank = np.zeros((1, 1, 8, 8), np.float32)
    golden = {"input:image": blank, f"output:{base.manifest.variants[0].name}:probabilities": _run(model, blank)}
    return _remade(base, version, model, golden, signers)


def _remade(
    base: Bundle,
    version: str,
    model: bytes,
    golden: dict[str, NDArray[np.float32]],
    signers: tuple[PrivateKey, ...],
) -> Bundle:
    files = {hashlib.sha256(content).hexdigest(): content for content in (model, _packed(golden))}
    model_file, golden_file = (Artifact(sha256=sha256, size_bytes=len(file)) for sha256, file in files.items())
    variant = msgspec.structs.replace(base.manifest.variants[0], file=model_file)
    manifest = msgspec.structs.replace(base.manifest, version=version, variants=[variant], golden=golden_file)
    return sign(manifest, files, signers)


def _packed(golden: dict[str, NDArray[np.float32]]) -> bytes:
    packed = io.BytesIO()
    np.savez(packed, **golden)  # type: ignore[arg-type]  # numpy types the keywords as one of its options
    return packed.getvalue()


def _run(model: bytes, images: NDArray[np.float32]) -> NDArray[np.float32]:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(model)
        answer: NDArray[np.float32] = Model.load(path).run({"image": images})["probabilities"]
    return answer
