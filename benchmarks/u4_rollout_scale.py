"""U4: stage planning for a million devices over 2 s, and 5,000 over the desired messages written in a second.

The ratio is the worse of the two; the figures have both. Planning draws control and the order of exposure of a million
devices of forty hardware classes. Writing is the real driver on a SQLite file: a rollout exposes every device of a
fleet, and everything that takes counts: choosing, looking, signing, the database, the gates' looks in between. Seconds
are processor time of this process, which runs on one core; wall time is beside it. Beside that stand what an idle look
costs at this size, and how fast the publisher hands the messages to a real Mosquitto where there is one.
"""

from __future__ import annotations

import os

for _threads in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_threads, "1")

import shutil  # noqa: E402 - the threads are counted when numpy is loaded
import statistics  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
from collections.abc import Callable  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

from sqlalchemy import Engine, insert  # noqa: E402

from benchmarks.result import Result  # noqa: E402
from fleet_protocol.keys import PrivateKey  # noqa: E402
from fleet_server.database.engine import open_engine  # noqa: E402
from fleet_server.database.tables import devices, metadata, models, versions  # noqa: E402
from fleet_server.message_bus import PahoBus  # noqa: E402
from fleet_server.rollouts.cohorts import draw_cohorts  # noqa: E402
from fleet_server.rollouts.driver import RolloutDriver  # noqa: E402
from fleet_server.rollouts.policy import ControlPolicy  # noqa: E402
from fleet_server.rollouts.publisher import DesiredPublisher  # noqa: E402
from fleet_server.rollouts.repository import create_rollout, get_rollout  # noqa: E402
from fleet_server.rollouts.work_share import WorkShare  # noqa: E402
from fleet_server.telemetry_store import EmbeddedStore  # noqa: E402

ID = "U4"
TITLE = "stage planning for 1,000,000 devices over 2 s, or 5,000 over desired messages written per second: the worse"
PLANNING_ALLOWANCE_S = 2.0
WANTED_PER_S = 5_000
PLANNED = 1_000_000
CLASSES = 40
FLEETS = (10_000, 100_000)
ROUNDS = 3
_FLEET = "bench"
_START_NS = 1_700_000_000 * 10**9


def run() -> Result:
    """Plan three times, then roll out to a fleet of each size."""
    few = bool(os.environ.get("EDGEFLEET_BENCH_SMALL"))
    planning = [_planning_s(PLANNED // 100 if few else PLANNED) for _ in range(ROUNDS)]
    rollouts = [_roll_out(count // 100 if few else count, publish=index == 0) for index, count in enumerate(FLEETS)]
    slowest = min(figures["written_per_cpu_s"] for figures in rollouts)
    planning_ratio = statistics.median(planning) / PLANNING_ALLOWANCE_S
    ratio = round(max(planning_ratio, WANTED_PER_S / slowest), 3)
    figures = {
        "planning_cpu_s": [round(seconds, 2) for seconds in planning],
        "planning_ratio": round(planning_ratio, 3),
        "written_per_cpu_s": slowest,
        "writing_ratio": round(WANTED_PER_S / slowest, 3),
        "rollouts": rollouts,
    }
    return Result(id=ID, title=TITLE, ratio=ratio, target="<= 1.0", holds=ratio <= 1.0, figures=figures)


def _planning_s(count: int) -> float:
    hardware = {f"device-{number:07d}": f"class-{number * 7919 % CLASSES}" for number in range(count)}
    began = time.process_time()
    cohorts = draw_cohorts(hardware, ControlPolicy(percent=10.0), "salt")
    seconds = time.process_time() - began
    if len(cohorts.order) + len(cohorts.control) != count:
        raise RuntimeError("the plan lost devices")
    return seconds


def _roll_out(count: int, *, publish: bool) -> dict[str, Any]:
    """Expose every device of a fresh fleet; then look when nothing changed, with and without gates and choosing."""
    with tempfile.TemporaryDirectory(prefix="edgefleet-u4-") as folder:
        engine = open_engine(f"sqlite:///{Path(folder) / 'fleet.db'}")
        metadata.create_all(engine)
        store = EmbeddedStore(Path(folder) / "telemetry.db")
        try:
            _fill(engine, count)
            now_ns, signer = _START_NS, PrivateKey.generate()
            driver = RolloutDriver(engine, store, signer, lambda: now_ns)
            policy = {
                "stages": [{"percent": 100, "bake_s": 3600}],
                "control": {"percent": 0},
                "deploy_deadline_s": 86_400,
            }
            rollout = create_rollout(
                engine,
                fleet=_FLEET,
                model="bench",
                version="1.0.0",
                policy_json=policy,
                created_by="bench",
                now_ns=now_ns,
            )
            driver.step()
            wall, cpu = _timed(lambda: _until_idle(driver))
            if get_rollout(engine, rollout).exposed_count != count:
                raise RuntimeError("not every device was exposed")
            idle = RolloutDriver(engine, store, signer, lambda: now_ns)
            _, whole_look_s = _timed(idle.step)
            costs_nothing = RolloutDriver(engine, store, signer, lambda: now_ns, share=_OnlyLooks())
            costs_nothing.step()
            look_s = statistics.median(_timed(costs_nothing.step)[1] for _ in range(5))
            return {
                "devices": count,
                "written_per_cpu_s": round(count / cpu),
                "written_per_wall_s": round(count / wall),
                "look_cpu_s": round(look_s, 4),
                "look_with_gates_and_choosing_cpu_s": round(whole_look_s, 3),
                "published_per_wall_s": _published_per_s(engine, Path(folder), count) if publish else None,
            }
        finally:
            store.close()
            engine.dispose()


class _OnlyLooks(WorkShare):
    """Chooses and judges once, and looks as often as it is asked to."""

    def is_due(self, rollout_id: str, kind: str) -> bool:
        """See WorkShare."""
        return kind == "look" or (rollout_id, kind) not in self._due


def _until_idle(driver: RolloutDriver) -> None:
    while driver.step().acted:
        pass


def _timed(work: Callable[[], object]) -> tuple[float, float]:
    """(wall, processor) seconds of `work`."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def _published_per_s(engine: Engine, folder: Path, count: int) -> int | None:
    if shutil.which("mosquitto") is None:
        return None
    from tests.real_servers.mosquitto import Mosquitto

    broker = Mosquitto(folder / "mosquitto")
    broker.start()
    bus = PahoBus(url=broker.url, client_id="bench", username="bench", password=None)
    try:
        bus.start([f"edgefleet/1/{_FLEET}/+/presence"], lambda _: None, lambda: None)
        _wait_for(bus)
        publisher = DesiredPublisher(bus=bus, engine=engine, fleet=_FLEET)
        began, sent = time.perf_counter(), 0
        while sent < count:
            sent += publisher.publish_due()
        return round(count / (time.perf_counter() - began))
    finally:
        bus.stop()
        broker.kill()


def _wait_for(bus: PahoBus) -> None:
    from fleet_server.errors import BusUnavailableError

    deadline = time.monotonic() + 20
    while True:
        try:
            bus.check()
        except BusUnavailableError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return


def _fill(engine: Engine, count: int) -> None:
    """A published version, and devices that have reported."""
    manifest = {"variants": [{"name": "int8", "expected": {}}]}
    report = {"schema": 1, "at_ns": 1, "sequence": 1, "boot_id": "00000000-00000001", "cpu_signature": "x86_64:avx2"}
    version = {"version": "1.0.0", "bundle": "0" * 64, "manifest": manifest, "published_by": "bench"}
    with engine.begin() as connection:
        connection.execute(insert(models).values(model="bench", created_ns=1))
        connection.execute(insert(versions).values(model="bench", published_ns=1, **version))
        for start in range(0, count, 10_000):
            names = [f"device-{number:06d}" for number in range(start, min(count, start + 10_000))]
            rows = [
                {
                    "fleet": _FLEET,
                    "device": name,
                    "labels": {"site": f"site-{len(name)}"},
                    "online": True,
                    "created_ns": 1,
                    "boot_id": "00000000-00000001",
                    "reported_sequence": 1,
                    "reported": {**report, "device": name},
                }
                for name in names
            ]
            connection.execute(insert(devices), rows)
