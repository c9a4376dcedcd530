"""D7: one drift evaluation of 10,000 devices x 20 features x one hour, in seconds of one core.

The devices' merged hours lie in an embedded store, with classes, scores and embedding sums beside the features; the
devices carry labels (ten sites, three kinds of hardware). Measured is the processor time of the whole answer: reading,
decoding, every test, segments, onset and words. At one site one feature moved, so that the drill-down has work to do.
What is written and read is checked against it: the finding must name the feature and the site.
"""

from __future__ import annotations

import os

for _threads in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_threads, "1")

import statistics  # noqa: E402 - the threads are counted when numpy is loaded
import tempfile  # noqa: E402
import time  # noqa: E402
from pathlib import Path  # noqa: E402

import msgspec  # noqa: E402
import numpy as np  # noqa: E402
from numpy.typing import NDArray  # noqa: E402
from sqlalchemy import Engine, insert  # noqa: E402

from benchmarks.result import Result  # noqa: E402
from fleet_protocol.bins import quantile_edges  # noqa: E402
from fleet_protocol.embedding_sums import FEATURE_SCALE, encode_sums  # noqa: E402
from fleet_protocol.manifest import (  # noqa: E402
    Artifact,
    FeatureReference,
    Manifest,
    RandomFeatureReference,
    ScoreReference,
    TensorSpec,
    Variant,
)
from fleet_protocol.varint import encode_sparse  # noqa: E402
from fleet_server.database.engine import open_engine  # noqa: E402
from fleet_server.database.tables import devices, metadata, models, versions  # noqa: E402
from fleet_server.drift import read_drift  # noqa: E402
from fleet_server.telemetry_store import EmbeddedStore  # noqa: E402
from fleet_server.telemetry_store.merged import Grain, MergedKey, MergedWindow  # noqa: E402

ID = "D7"
TITLE = "drift evaluation of 10,000 devices x 20 features x one hour, seconds of one core over 5"
ALLOWANCE_S = 5.0
DEVICES = 10_000
FEATURES = 20
VALUES_PER_DEVICE = 600
RANDOM_FEATURES = 256
CLASSES = 10
ROUNDS = 3
SITES, HARDWARE = 10, 3
MOVED_SITE, MOVED_FEATURE = "site-3", "feature_7"
_HOUR_NS = 3_600 * 10**9
_START_NS = 500_000 * _HOUR_NS
_BINS = 64


def run() -> Result:
    """Write the hour, evaluate it a few times, tell the median."""
    few = bool(os.environ.get("EDGEFLEET_BENCH_SMALL"))
    count = 1_000 if few else DEVICES
    with tempfile.TemporaryDirectory(prefix="edgefleet-d7-") as folder:
        engine = open_engine(f"sqlite:///{Path(folder) / 'fleet.db'}")
        metadata.create_all(engine)
        store = EmbeddedStore(Path(folder) / "telemetry.db")
        try:
            _publish(engine)
            _write(engine, store, count)
            seconds, walls, report = [], [], None
            for _ in range(ROUNDS):
                wall, cpu = time.perf_counter(), time.process_time()
                (report,) = read_drift(
                    engine, store, fleet="bench", model="bench", version="1.0.0",
                    start_ns=_START_NS, end_ns=_START_NS + _HOUR_NS,
                )  # fmt: skip
                seconds.append(time.process_time() - cpu)
                walls.append(time.perf_counter() - wall)
        finally:
            store.close()
            engine.dispose()
    assert report is not None
    found = next(signal for signal in report.signals if signal.signal == MOVED_FEATURE)
    named = {f"{segment.by}={segment.value}" for segment in found.segments}
    ratio = round(statistics.median(seconds) / ALLOWANCE_S, 3)
    figures = {
        "devices": count,
        "features": FEATURES,
        "seconds_cpu": [round(value, 2) for value in seconds],
        "seconds_wall": [round(value, 2) for value in walls],
        "devices_read": report.seen.devices,
        "read_from": report.read_from,
        "signals": len(report.signals),
        "sentence": found.sentence,
        "segment_found": f"site={MOVED_SITE}" in named,
    }
    right = report.seen.devices == count and figures["segment_found"] is True
    return Result(id=ID, title=TITLE, ratio=ratio, target="<= 1.0", holds=right and ratio <= 1.0, figures=figures)


def _publish(engine: Engine) -> None:
    random = np.random.default_rng(7)
    values = random.normal(size=20_000)
    edges = quantile_edges(values, _BINS)
    counts = np.histogram(values, edges)[0]
    tensor = TensorSpec(name="x", datatype="FP32", shape=[-1, 8])
    artifact = Artifact(sha256="0" * 64, size_bytes=1)
    manifest = Manifest(
        model="bench",
        version="1.0.0",
        created_at_ns=1,
        task="classification",
        inputs=[tensor],
        outputs=[tensor],
        variants=[Variant(name="int8", file=artifact, opset=17, quantization="static", golden_tolerance=0.1)],
        golden=artifact,
        features=[
            FeatureReference(
                name=f"feature_{number}", extractor="mean", input="x", edges=edges.tolist(), counts=counts.tolist()
            )
            for number in range(FEATURES)
        ],
        classes=[2_000] * CLASSES,
        score=ScoreReference(edges=edges.tolist(), counts=counts.tolist()),
        random_features=RandomFeatureReference(
            tensor="x", seed=1, bandwidth=1.0, count=20_000, sums=[0.0] * RANDOM_FEATURES
        ),
    )
    with engine.begin() as connection:
        connection.execute(insert(models).values(model="bench", created_ns=1))
        connection.execute(
            insert(versions).values(
                model="bench",
                version="1.0.0",
                bundle="0" * 64,
                manifest=msgspec.to_builtins(manifest),
                published_by="bench",
                published_ns=1,
            )
        )


def _write(engine: Engine, store: EmbeddedStore, count: int) -> None:
    """Device hours of devices that differ; at one site one feature lies 0.8 standard deviations higher."""
    random = np.random.default_rng(8)
    shares = np.full(_BINS, 1 / _BINS)
    ranks = (np.arange(_BINS) + 0.5) / _BINS - 0.5
    rows, hours = [], []
    for number in range(count):
        name, site = f"device-{number:05d}", f"site-{number % SITES}"
        labels = {"site": site, "hardware": f"kind-{number % HARDWARE}"}
        rows.append({"fleet": "bench", "device": name, "labels": labels, "created_ns": 1})
        features = {}
        for feature in range(FEATURES):
            is_moved = site == MOVED_SITE and f"feature_{feature}" == MOVED_FEATURE
            tilt = random.normal(0.8 if is_moved else 0.0, 0.3) * 3.5
            features[f"feature_{feature}"] = encode_sparse(_drawn(random, shares * np.exp(tilt * ranks)))
        hours.append(
            MergedWindow(
                key=MergedKey(model="bench", version="1.0.0", variant="int8", arm="main", device=name),
                start_ns=_START_NS,
                windows=60,
                devices=1,
                first_end_ns=_START_NS + _HOUR_NS // 60,
                last_end_ns=_START_NS + _HOUR_NS,
                count=VALUES_PER_DEVICE,
                features=features,
                classes=dict(enumerate(random.multinomial(VALUES_PER_DEVICE, np.full(CLASSES, 1 / CLASSES)).tolist())),
                score=encode_sparse(_drawn(random, shares * np.exp(random.normal(0, 1.0) * ranks))),
                embedding_count=VALUES_PER_DEVICE,
                embedding_sums=encode_sums(
                    (random.normal(0, 0.05, RANDOM_FEATURES) * FEATURE_SCALE * VALUES_PER_DEVICE).astype(np.int64)
                ),
            )
        )
    with engine.begin() as connection:
        connection.execute(insert(devices), rows)
    store.write_merged("bench", Grain.DEVICE_HOUR, hours)


def _drawn(random: np.random.Generator, weights: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.concatenate([random.multinomial(VALUES_PER_DEVICE, weights / weights.sum()), np.zeros(5, dtype=np.int64)])
