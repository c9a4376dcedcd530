"""A small fleet to merge: a database, a store, an ingest's ledger, a clock that the test sets, and windows."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Engine, insert

from fleet_protocol.messages import Outcomes, Window
from fleet_server.database.engine import open_engine
from fleet_server.database.schema import upgrade
from fleet_server.database.tables import devices
from fleet_server.ingest.device_records import record_batch, uncounted_windows
from fleet_server.merging.marks import marked_devices, marked_spans
from fleet_server.merging.merger import Merger
from fleet_server.merging.reading import merged_windows
from fleet_server.telemetry_store import EmbeddedStore, Grain, MergedWindow, Slice, TelemetryStore
from fleet_server.telemetry_store._stored import pack
from fleet_server.telemetry_store.merge import merge, regroup
from tests.server.telemetry_store.windows import MINUTE_NS, T0_NS, window

HOUR_NS = 60 * MINUTE_NS
H0_NS = T0_NS // HOUR_NS * HOUR_NS
RAW_RETENTION_S = 14 * 86_400
ALL_TIME = Slice(fleet="home", start_ns=0, end_ns=2**63 - 1)


@dataclass
class Clock:
    """The server's clock."""

    now_ns: int = H0_NS

    def __call__(self) -> int:
        return self.now_ns


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """What merging works on."""

    engine: Engine
    store: TelemetryStore
    clock: Clock

    def merger(self) -> Merger:
        """A merger, as another process would have it."""
        return Merger(
            engine=self.engine, store=self.store, fleet="home", raw_retention_s=RAW_RETENTION_S, now_ns=self.clock
        )

    def take_in(self, windows: Sequence[Window]) -> None:
        """What the ingest does with a batch."""
        with self.engine.connect() as connection:
            fresh = uncounted_windows(connection, "home", windows)
        self.store.write("home", fresh)
        self.count(windows)

    def count(self, windows: Sequence[Window]) -> None:
        """The second half of `take_in`."""
        with self.engine.begin() as connection:
            record_batch(connection, "home", windows, [], now_ns=self.clock())

    def merge_all(self, merger: Merger | None = None) -> None:
        """Let time pass until everything that is marked is due, and merge it."""
        merger = merger or self.merger()
        self.clock.now_ns += 2 * HOUR_NS
        while merger.step():
            pass
        self.clock.now_ns += HOUR_NS
        while merger.step():
            pass
        merger.close()

    def read(self, grain: Grain, *, exact: bool = True) -> list[MergedWindow]:
        """Every merged window of a grain."""
        return list(merged_windows(self.engine, self.store, ALL_TIME, grain, exact=exact))

    def stored(self, grain: Grain) -> list[MergedWindow]:
        """What the store has, whatever is marked."""
        return list(self.store.merged(ALL_TIME, grain))

    def label(self, device: str, **labels: str) -> None:
        """Make a device known with labels."""
        with self.engine.begin() as connection:
            connection.execute(devices.delete().where(devices.c.device == device))
            connection.execute(insert(devices).values(fleet="home", device=device, labels=labels, created_ns=1))


@contextmanager
def open_fleet(folder: Path, clock: Clock | None = None, *, database_url: str = "") -> Iterator[Fleet]:
    """A fleet on the embedded store in `folder`, and on SQLite there unless another database is named."""
    engine = open_engine(database_url or f"sqlite:///{folder / 'fleet.db'}")
    upgrade(engine)
    store = EmbeddedStore(folder / "telemetry.db")
    try:
        yield Fleet(engine=engine, store=store, clock=clock or Clock())
    finally:
        store.close()
        engine.dispose()


def windows_of(seed: int, count: int = 120, hours: int = 3) -> list[Window]:
    """Windows of six devices and two versions that end within `hours` before H0_NS, in no order."""
    rng = random.Random(seed)
    return [
        window(
            device=f"dev-{rng.randrange(6)}",
            sequence=n + 1,
            version=rng.choice(["1.0.0", "1.1.0"]),
            end_ns=H0_NS - rng.randrange(hours * 3_600) * 10**9,
            count=rng.randrange(100),
            outcomes=Outcomes(correct=1, squared_error_sum=rng.random(), squared_error_count=1),
        )
        for n in range(count)
    ]


def expected(windows: Sequence[Window], grain: Grain) -> list[bytes]:
    if grain is Grain.FLEET_HOUR:  # from minutes, as the merger does: the last bits of float sums are those
        return [pack(one) for one in regroup(merge(windows, Grain.FLEET_MINUTE, _cohort), lambda key: key, HOUR_NS)]
    return [pack(one) for one in merge(windows, grain, _cohort)]


def _cohort(_device: str) -> str:
    return ""


def assert_all_is_as_the_windows_are(fleet: Fleet, windows: Sequence[Window], *, in_the_store: bool) -> None:
    for grain in Grain:
        assert [pack(one) for one in fleet.read(grain)] == expected(windows, grain), grain
        if in_the_store:
            assert [pack(one) for one in fleet.stored(grain)] == expected(windows, grain), grain


def marks(fleet: Fleet) -> list[object]:
    with fleet.engine.connect() as connection:
        spans = [marked_spans(connection, "home", grain, start_ns=0, end_ns=2**63 - 1) for grain in Grain]
        return [*itertools.chain(*spans), *marked_devices(connection, "home", start_ns=-1, end_ns=2**63 - 1)]
