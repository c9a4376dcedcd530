"""What devices measured of variants: kept once per device, pooled by kind, and told to those that come later."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import func, insert, select
from typer.testing import CliRunner

from fleet_protocol.messages import (
    FAULT_DAMAGED,
    FAULT_NO_MEMORY,
    FAULT_WRONG,
    Assignment,
    ModelReport,
    Phase,
    Reported,
    VariantFigures,
)
from fleet_server.cli import app
from fleet_server.database.tables import models, variant_figures, versions
from fleet_server.ingest.device_records import record_reports
from fleet_server.registry.variants import (
    MAX_POOLED_DEVICES,
    PooledFigures,
    VariantHints,
    VariantPool,
    preferred_variant,
    variant_pools,
)
from tests.server.api.running import running_server
from tests.server.rollouts.fleet import FLEET, MODEL, Fleet, bundle

VERSION = "3.0.0"
BUNDLE = bundle(VERSION)
VNNI, AVX2, ARM, RUNTIME = "x86_64:avx2+vnni", "x86_64:avx2", "aarch64:dot", "1.32.0"
MANIFEST = {
    "variants": [
        {"name": "fp32", "file": {"size_bytes": 1}},
        {"name": "int8", "architectures": ["x86_64"], "file": {"size_bytes": 1}},
        {"name": "int8-arm", "architectures": ["aarch64"], "file": {"size_bytes": 1}},
    ]
}
_SEQUENCES = iter(range(1, 2**31))


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    made = Fleet(tmp_path)
    publish(made.engine)
    yield made
    made.close()


def publish(engine: Any, *, with_model: bool = False) -> None:
    with engine.begin() as connection:
        if with_model:
            connection.execute(insert(models).values(model=MODEL, created_ns=1))
        connection.execute(
            insert(versions).values(
                model=MODEL, version=VERSION, bundle=BUNDLE, manifest=MANIFEST, published_by="test", published_ns=1
            )
        )


def right(variant: str, p50_us: float, memory_bytes: int = 1_000_000) -> VariantFigures:
    return VariantFigures(variant=variant, right=True, p50_us=p50_us, memory_bytes=memory_bytes)


def wrong(variant: str, fault: str = FAULT_WRONG) -> VariantFigures:
    return VariantFigures(variant=variant, right=False, fault=fault)


def report(device: str, *figures: VariantFigures, active: str = BUNDLE, **changes: Any) -> Reported:
    entry = ModelReport(model=MODEL, phase=Phase.HEALTHY, active=active, desired=active, variants=list(figures))
    values = {"cpu_signature": VNNI, "onnxruntime_version": RUNTIME, "sequence": next(_SEQUENCES), **changes}
    return Reported(device=device, boot_id="00000000-00000001", at_ns=1, models=[entry], **values)


def tell(fleet: Fleet, *reports: Reported) -> None:
    fleet.now_ns += 1
    with fleet.engine.begin() as connection:
        record_reports(connection, FLEET, reports, now_ns=fleet.now_ns)


def hint_for(fleet: Fleet, device: str, bundle_digest: str = BUNDLE) -> str:
    assignment = Assignment(model=MODEL, version=VERSION, bundle=bundle_digest)
    with fleet.engine.connect() as connection:
        [applied] = VariantHints(connection, fleet=FLEET).applied(device, [assignment])
    return applied.variant


def pools(fleet: Fleet) -> list[VariantPool]:
    with fleet.engine.connect() as connection:
        return variant_pools(connection, fleet=FLEET, bundle=BUNDLE)


def live_until_running(fleet: Fleet, count: int) -> None:
    for _ in range(60):
        if len(fleet.running(VERSION)) >= count:
            return
        fleet.live()
    raise AssertionError(f"{fleet.running(VERSION)} run {VERSION}, {count} should")


def rows(fleet: Fleet) -> int:
    with fleet.engine.connect() as connection:
        return connection.execute(select(func.count()).select_from(variant_figures)).scalar_one()


def test_the_first_device_that_measured_all_tells_the_next_of_its_kind_what_to_fetch(fleet: Fleet) -> None:
    tell(fleet, report("a", right("fp32", 80.0), right("int8", 40.0)), report("b"), report("c", cpu_signature=AVX2))

    assert hint_for(fleet, "b") == "int8"
    assert hint_for(fleet, "c") == hint_for(fleet, "unknown") == ""
    assert hint_for(fleet, "b", "e" * 64) == ""


def test_nothing_is_preferred_while_no_device_tried_every_candidate_of_its_architecture(fleet: Fleet) -> None:
    tell(fleet, report("a", right("fp32", 80.0)), report("b", right("int8", 40.0)))
    assert hint_for(fleet, "a") == ""

    tell(fleet, report("c", right("fp32", 80.0), right("int8", 90.0)))
    assert hint_for(fleet, "a") == "int8"  # the median of 40 and 90 is below that of 80 and 80
    tell(fleet, report("arm", right("fp32", 80.0), right("int8-arm", 50.0), cpu_signature=ARM))
    assert hint_for(fleet, "arm") == "int8-arm"


def test_one_wrong_answer_anywhere_in_a_kind_takes_the_preference_away_and_not_in_another_kind(fleet: Fleet) -> None:
    full = (right("fp32", 80.0), right("int8", 40.0))
    tell(fleet, report("a", *full), report("b", *full), report("o", *full, cpu_signature=AVX2))
    tell(fleet, report("c", wrong("int8"), right("fp32", 82.0)))

    assert (hint_for(fleet, "a"), hint_for(fleet, "o")) == ("fp32", "int8")
    tell(fleet, report("d", wrong("int8"), wrong("fp32", "something new")))
    assert hint_for(fleet, "a") == ""


@pytest.mark.parametrize("fault", [FAULT_NO_MEMORY, FAULT_DAMAGED])
def test_a_devices_own_trouble_speaks_neither_for_nor_against_a_variant(fleet: Fleet, fault: str) -> None:
    tell(fleet, report("a", right("fp32", 80.0), wrong("int8", fault)))
    assert hint_for(fleet, "a") == ""

    tell(fleet, report("b", right("fp32", 80.0), right("int8", 40.0)))
    assert hint_for(fleet, "a") == "int8"
    [pool] = pools(fleet)
    assert [(one.variant, one.right, one.wrong) for one in pool.variants] == [("fp32", 2, 0), ("int8", 1, 0)]


def test_another_onnxruntime_is_another_kind(fleet: Fleet) -> None:
    full = (right("fp32", 80.0), right("int8", 40.0))
    tell(fleet, report("a", *full), report("b", onnxruntime_version="1.33.0"))

    assert (hint_for(fleet, "a"), hint_for(fleet, "b")) == ("int8", "")
    tell(fleet, report("a", right("fp32", 30.0), right("int8", 40.0), onnxruntime_version="1.33.0"))
    assert (hint_for(fleet, "a"), rows(fleet)) == ("fp32", 2)


def test_a_device_counts_once_however_often_it_reports_and_an_older_report_counts_not_at_all(fleet: Fleet) -> None:
    late = report("a", right("fp32", 99.0), right("int8", 9.0))
    for _ in range(3):
        tell(fleet, report("a", right("fp32", 80.0), right("int8", 40.0)))
    tell(fleet, late)
    tell(fleet, report("a"))

    [pool] = pools(fleet)
    assert [(one.right, one.p50_us) for one in pool.variants] == [(1, 80.0), (1, 40.0)]
    assert rows(fleet) == 2


def test_what_names_no_published_variant_or_no_kind_leaves_no_row(fleet: Fleet) -> None:
    tell(
        fleet,
        report("a", right("nobody-made-this", 1.0)),
        report("b", right("fp32", 1.0), active="e" * 64),
        report("c", right("fp32", 1.0), cpu_signature=""),
        report("d", right("fp32", 1.0), cpu_signature="\x00 nasty"),
        report("e", right("fp32", 1.0), cpu_signature="y" * 65),
    )

    assert (rows(fleet), pools(fleet)) == (0, [])


def test_the_median_is_over_the_devices_that_measured_last(fleet: Fleet) -> None:
    tell(fleet, *(report(f"old-{n}", right("fp32", 500.0)) for n in range(10)))
    tell(fleet, *(report(f"new-{n}", right("fp32", 100.0 + n % 2)) for n in range(MAX_POOLED_DEVICES)))

    [pool] = pools(fleet)
    assert (pool.variants[0].right, pool.variants[0].p50_us) == (MAX_POOLED_DEVICES + 10, 100.5)


FIGURES = st.builds(
    PooledFigures,
    variant=st.sampled_from(["a", "b", "c"]),
    right=st.integers(0, 2),
    wrong=st.integers(0, 2),
    p50_us=st.none() | st.floats(1, 100),
    memory_bytes=st.none(),
)


@given(st.lists(FIGURES, unique_by=lambda one: one.variant), st.booleans())
def test_a_preference_is_never_for_a_variant_that_was_wrong_anywhere_or_that_nobody_measured(
    figures: list[PooledFigures], is_complete: bool
) -> None:
    pool = VariantPool(
        cpu_signature=VNNI, onnxruntime_version=RUNTIME, is_complete=is_complete, variants=tuple(figures)
    )
    chosen = next((one for one in figures if one.variant == preferred_variant(pool)), None)

    sound = [one for one in figures if one.right and not one.wrong and one.p50_us is not None]
    assert (chosen is not None) == bool(is_complete and sound)
    if chosen is not None:
        assert chosen in sound
        assert chosen.p50_us == min(one.p50_us for one in sound if one.p50_us is not None)
        assert preferred_variant(replace(pool, is_complete=False)) == ""


def test_a_rollout_hints_those_it_exposes_later_and_moves_no_device_that_runs_already(fleet: Fleet) -> None:
    fleet.publish("1.0.0")
    fleet.enrol(5, v1_0_0=98, v3_0_0=98)
    fleet.install("1.0.0")
    rollout = fleet.create(VERSION, gates=[{"gate": "update_failures"}])
    live_until_running(fleet, 1)
    [first] = fleet.running(VERSION)
    before = fleet.desired(first)
    assert before is not None and before.assignments[0].variant == ""

    kind = {"cpu_signature": AVX2, "onnxruntime_version": RUNTIME}
    fleet.devices[first].sequence += 1
    measured = report(first, right("fp32", 80.0), right("int8", 40.0), **kind, generation=before.generation)
    tell(fleet, msgspec.structs.replace(measured, sequence=fleet.devices[first].sequence))
    for name, device in fleet.devices.items():
        if name != first:  # the virtual devices' own reports name no ONNX Runtime
            device.sequence += 1
            entry = ModelReport(model=MODEL, phase=Phase.HEALTHY, active=bundle("1.0.0"), desired=bundle("1.0.0"))
            told = report(name, **kind, generation=device.generation)
            tell(fleet, msgspec.structs.replace(told, models=[entry], sequence=device.sequence))
    live_until_running(fleet, 5)

    hints = {name: wanted.assignments[0].variant for name in fleet.devices if (wanted := fleet.desired(name))}
    assert hints == {name: "" if name == first else "int8" for name in fleet.devices}
    fleet.live_until(rollout, "COMPLETED")
    assert fleet.desired(first) == before


def test_the_api_and_the_command_show_the_figures_of_each_kind(tmp_path: Path) -> None:
    with running_server(tmp_path) as server:
        publish(server.engine, with_model=True)
        told = report("a", right("fp32", 80.0), wrong("int8")), report("b", right("fp32", 60.0), cpu_signature=AVX2)
        with server.engine.begin() as connection:
            record_reports(connection, "demo", told, now_ns=1)
        with server.client("viewer") as client:
            found = client.get(f"/api/v1/models/{MODEL}/versions/{VERSION}/variants").json()
            assert client.get(f"/api/v1/models/{MODEL}/versions/9.9.9/variants").status_code == 404
        env = {"EDGEFLEET_SERVER": server.url, "EDGEFLEET_API_KEY": server.keys["viewer"], "COLUMNS": "200"}
        text, packed = (
            CliRunner(env=env).invoke(app, ["models", "variants", MODEL, VERSION, *extra]).stdout
            for extra in ([], ["--json"])
        )

    assert {item["cpu_signature"]: item["preferred"] for item in found["items"]} == {VNNI: "fp32", AVX2: ""}
    vnni = next(item for item in found["items"] if item["cpu_signature"] == VNNI)
    assert vnni["onnxruntime_version"] == RUNTIME
    assert vnni["variants"] == [
        {"variant": "fp32", "right": 1, "wrong": 0, "p50_us": 80.0, "memory_bytes": 1_000_000},
        {"variant": "int8", "right": 0, "wrong": 1, "p50_us": None, "memory_bytes": None},
    ]
    assert msgspec.json.decode(packed) == found["items"]
    assert all(word in text for word in (VNNI, RUNTIME, "80.0 us", "1.0 MB"))
