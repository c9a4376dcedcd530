"""Which file a delta begins from."""

from __future__ import annotations

from pathlib import Path

from msgspec.structs import replace

from edge_agent.control.delta import choose_base
from fleet_protocol.manifest import Artifact, Manifest, Variant
from tests.agent.control.bundles import bundle, digest_of


def test_the_base_is_the_same_variant_of_the_newest_bundle_else_the_most_like_one(tmp_path: Path) -> None:
    def variant(name: str, size: int, quantization: str = "none") -> Variant:
        file = Artifact(sha256=digest_of(f"{name}{size}".encode(), tmp_path), size_bytes=size)
        return Variant(name=name, file=file, opset=17, quantization=quantization, golden_tolerance=0.1)

    def version(number: int, *variants: Variant) -> Manifest:
        return replace(base, version=f"1.{number}.0", created_at_ns=number, variants=list(variants))

    base = bundle(tmp_path / "x").manifest
    first = version(1, variant("fp32", 400), variant("int8", 100, "qdq"))
    second = version(2, variant("fp32", 401), variant("int8", 101, "qdq"))
    third = version(3, variant("fp32", 402), variant("int8", 102, "qdq"), variant("other", 103, "qdq"))
    wanted = {one.name: one.file for one in third.variants}
    held = [(one, one.artifacts()) for one in (first, second)]

    assert choose_base(wanted["int8"], third, held) == second.variants[1].file
    assert choose_base(wanted["fp32"], third, held) == second.variants[0].file
    assert choose_base(wanted["other"], third, held) == second.variants[1].file
    assert choose_base(wanted["int8"], third, [(first, [first.variants[0].file])]) == first.variants[0].file
    assert choose_base(wanted["int8"], third, [(third, third.artifacts())]) == wanted["int8"]
    assert choose_base(third.golden, third, held) == second.golden
    assert choose_base(wanted["int8"], third, []) == wanted["int8"]
