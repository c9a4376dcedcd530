"""Reports of many shapes, built by hand: what the tests read and what is good to look at."""

from __future__ import annotations

import random

from quantize.scheme import Form, Integer, Ranges, Scheme
from quantize.search_report import CandidateResult, ClassDelta, LayerResult, SearchReport, ShippedVariant, Status

HOSTILE = "<script>alert('x')</script>\"&|`[a](http://evil.example)\x00\x1b[31m\u202e"
GIVEN = Scheme(form=Form.GIVEN)
FLOAT = Scheme(form=Form.FLOAT)
U8S8 = Scheme(form=Form.QDQ, activations=Integer.U8, weights=Integer.S8, per_channel=True)
S8S8 = Scheme(form=Form.QDQ, activations=Integer.S8, weights=Integer.S8, per_channel=True)


def candidate(scheme: Scheme, *, speedup: float, metric: float, fp32: float = 0.98, **more: object) -> CandidateResult:
    """A measured candidate."""
    figures: dict[str, object] = {
        "name": scheme.name,
        "status": Status.MEASURED,
        "reason": "",
        "scheme": scheme,
        "by": "screening",
        "metric": metric,
        "keeps": metric / fp32,
        "p50_us": 100.0 / speedup,
        "p90_us": 130.0 / speedup,
        "speedup": speedup,
        "size_bytes": 400_000 if scheme.form in (Form.GIVEN, Form.FLOAT) else 108_000,
        "memory_bytes": 1_900_000,
        "quantize_nodes": 1,
        "dequantize_nodes": 2,
        "took_s": 0.31,
    }
    return CandidateResult(**{**figures, **more})  # type: ignore[arg-type] # the figures are those of the struct


def variant(one: CandidateResult, **more: object) -> ShippedVariant:
    """What the final samples say of a candidate that ships."""
    figures: dict[str, object] = {
        "name": one.name,
        "quantization": one.scheme.quantization,
        "metric": one.metric,
        "fp32_metric": 0.98,
        "keeps": one.keeps,
        "size_bytes": one.size_bytes,
        "memory_bytes": one.memory_bytes,
        "p50_us": one.p50_us,
        "p90_us": one.p90_us,
        "speedup": one.speedup,
        "fp32_only_right": 2,
        "variant_only_right": 3,
        "p_value": 1.0,
    }
    return ShippedVariant(**{**figures, **more})  # type: ignore[arg-type] # the figures are those of the struct


def report(candidates: list[CandidateResult], shipped: list[ShippedVariant], **more: object) -> SearchReport:
    """A report around candidates and variants."""
    facts: dict[str, object] = {
        "model": "digits",
        "version": "1.1.0",
        "source": "digits.onnx",
        "source_sha256": "ab" * 32,
        "created_at_ns": 1_772_000_000_000_000_000,
        "task": "classification",
        "metric": "accuracy",
        "higher_is_better": True,
        "max_drop": 0.005,
        "seed": 0,
        "samples": {"calibration": 200, "selection": 300, "final": 500},
        "labels": [],
        "cpu": "x86_64:avx2+fma+avx512+vnni",
        "cpu_name": "AMD EPYC",
        "onnxruntime": "1.27.0",
        "took_s": 83.2,
        "candidates": candidates,
        "shipped": shipped,
    }
    return SearchReport(**{**facts, **more})  # type: ignore[arg-type] # the facts are those of the struct


def layer(number: int, *, db: float | None, **more: object) -> LayerResult:
    """A convolution."""
    facts: dict[str, object] = {
        "name": f"/layers/layers.{number}/Conv",
        "operator": "Conv",
        "weights": 2_304,
        "signal_to_noise_db": db,
        "keeps": 1.0,
    }
    return LayerResult(**{**facts, **more})  # type: ignore[arg-type] # the facts are those of the struct


def classes(number: int, *, seed: int = 1) -> list[ClassDelta]:
    """Classes of which some lose and some gain an answer."""
    chance = random.Random(seed)
    found = []
    for place in range(number):
        samples = chance.randint(20, 60)
        right = chance.randint(samples - 10, samples)
        now = min(samples, max(0, right + chance.choice([0, 0, 0, -1, -2, 1])))
        found.append(ClassDelta(label=f"class {place}", samples=samples, fp32=right / samples, variant=now / samples))
    return found


def int8_wins() -> SearchReport:
    """int8 for this CPU and for another one, beside the float file."""
    given = candidate(GIVEN, speedup=1.0, metric=0.98, reason="not faster than the float file", by="given")
    rewritten = candidate(FLOAT, speedup=1.12, metric=0.98, reason="ships", shipped=True, on_front=True)
    fast = candidate(
        U8S8, speedup=1.72, metric=0.9781, reason="ships", shipped=True, on_front=True, architectures=["x86_64"]
    )
    other = candidate(
        S8S8, speedup=0.71, metric=0.979, reason="ships", shipped=True, by="architecture", architectures=["aarch64"]
    )
    bad = candidate(
        Scheme(form=Form.DYNAMIC, weights=Integer.S8), speedup=1.9, metric=0.93, reason="loses 5.10% of the metric"
    )
    return report(
        [given, rewritten, fast, bad, other],
        [variant(rewritten), variant(fast, classes=classes(10)), variant(other)],
        layers=[
            layer(0, db=30.0, float_gain_us=4.5, excluded=True, reason="faster in float"),
            *(layer(n, db=30.0 + n, float_gain_us=n - 3.0) for n in range(1, 8)),
        ],
        rewrites=["constants folded (5)"],
    )


def int8_loses() -> SearchReport:
    """The float file alone, as it was given."""
    given = candidate(GIVEN, speedup=1.0, metric=0.98, reason="ships", by="given", shipped=True, on_front=True)
    slow = candidate(U8S8, speedup=0.8, metric=0.98, reason="not faster than the float file")
    return report([given, slow], [variant(given)], warnings=["int8 loses here: it is slow"])


def with_failures() -> SearchReport:
    """Failed and interrupted candidates, which have no figures."""
    lost = {
        name: CandidateResult(name=f"{name}-one", status=status, reason=f"{name} for a reason", scheme=scheme)
        for name, status, scheme in (
            ("failed", Status.FAILED, Scheme(form=Form.FLOAT16)),
            ("interrupted", Status.INTERRUPTED, Scheme(form=Form.WEIGHT_ONLY, weights=Integer.S4, block_size=32)),
        )
    }
    base = int8_loses()
    return report([*base.candidates, *lost.values()], list(base.shipped))


def hostile() -> SearchReport:
    """Names that try to be something else, everywhere a name can be."""
    given = candidate(GIVEN, speedup=1.0, metric=0.98, shipped=True, reason=HOSTILE, by=HOSTILE)
    other = candidate(U8S8, speedup=1.5, metric=0.98, shipped=True, reason=HOSTILE, architectures=[HOSTILE])
    shipped = [
        variant(given),
        variant(other, classes=[ClassDelta(label=HOSTILE, samples=3, fp32=1.0, variant=0.5)]),
    ]
    return report(
        [given, other],
        shipped,
        model=HOSTILE,
        version=HOSTILE,
        source=HOSTILE,
        source_sha256=HOSTILE,
        task=HOSTILE,
        metric=HOSTILE,
        samples={HOSTILE: 3},
        labels=[HOSTILE],
        cpu=HOSTILE,
        cpu_name=HOSTILE,
        onnxruntime=HOSTILE,
        rewrites=[HOSTILE],
        warnings=[HOSTILE],
        layers=[layer(0, db=3.0, name=HOSTILE, operator=HOSTILE, excluded=True, reason=HOSTILE)],
    )


def large(*, candidates: int = 100, layers: int = 200, classes_: int = 100, seed: int = 3) -> SearchReport:
    """As large as a search becomes: many candidates of one name, many layers, many classes."""
    chance = random.Random(seed)
    given = candidate(
        GIVEN, speedup=1.0, metric=0.7612, fp32=0.7612, by="given", reason="not faster than the float file"
    )
    rewritten = candidate(FLOAT, speedup=1.08, metric=0.7612, fp32=0.7612, reason="ships", shipped=True, on_front=True)
    tried = [given, rewritten]
    for place in range(max(0, candidates - 3)):
        scheme = Scheme(
            form=chance.choice([Form.QDQ, Form.QOPERATOR, Form.DYNAMIC]),
            activations=Integer.U8,
            weights=chance.choice([Integer.S8, Integer.S7]),
            per_channel=chance.random() < 0.6,
            ranges=chance.choice(list(Ranges)),
            bias_corrected=chance.random() < 0.3,
            excluded=tuple(f"layer{number}" for number in range(place % 17)),
        )
        metric = 0.7612 - abs(chance.gauss(0, 0.004)) if chance.random() < 0.85 else chance.uniform(0.01, 0.7)
        tried.append(
            candidate(
                scheme,
                speedup=chance.uniform(0.7, 2.0) if chance.random() < 0.95 else 0.11,
                metric=metric,
                fp32=0.7612,
                reason="another accurate variant is as fast or faster",
                size_bytes=chance.randint(900_000, 1_400_000),
                on_front=place % 19 == 0,
            )
        )
    fast = candidate(
        U8S8,
        speedup=2.09,
        metric=0.7599,
        fp32=0.7612,
        reason="ships",
        shipped=True,
        on_front=True,
        architectures=["x86_64"],
        size_bytes=950_000,
    )
    tried.append(fast)
    rows = [
        layer(
            n,
            db=None if n % 23 == 5 else 200.0 if n % 31 == 7 else chance.uniform(8, 60),
            name=f"model/block_{n}/expand/BatchNorm/FusedBatchNormV3;model/block_{n}/expand/Conv2D;model/Relu6_{n}",
            weights=chance.randint(0, 400_000),
            float_gain_us=None if n % 3 else chance.uniform(-9, 9),
            excluded=n % 11 == 0,
            reason="for accuracy" if n % 11 == 0 else "",
        )
        for n in range(layers)
    ]
    return report(
        tried,
        [variant(rewritten, fp32_metric=0.7612), variant(fast, fp32_metric=0.7612, classes=classes(classes_))],
        layers=rows,
        took_s=4_211.0,
        rewrites=["constants folded (5)", "scales and offsets folded into the layers after them (52)"],
        warnings=["placing layers of int8-qdq-u8s8 ended after 7 moves for want of time"],
    )


def error_metric() -> SearchReport:
    """A reconstruction, of which a smaller error is better, without classes or pairs."""
    given = candidate(GIVEN, speedup=1.0, metric=0.000123, keeps=1.0, by="given", reason="not faster")
    rewritten = candidate(FLOAT, speedup=1.05, metric=0.000123, keeps=1.0, shipped=True, reason="ships")
    fast = candidate(
        U8S8, speedup=1.4, metric=0.0001233, keeps=0.9976, shipped=True, reason="ships", architectures=["x86_64"]
    )
    none = {"fp32_only_right": None, "variant_only_right": None, "p_value": None, "fp32_metric": 0.000123}
    return report(
        [given, rewritten, fast],
        [variant(rewritten, **none), variant(fast, **none)],
        metric="mse",
        higher_is_better=False,
        task="anomaly",
        samples={"calibration": 200, "selection": 300, "final": 0},
    )


SHAPES = {
    "int8 wins": int8_wins,
    "int8 loses": int8_loses,
    "failures": with_failures,
    "hostile": hostile,
    "large": large,
    "error metric": error_metric,
}
