"""The ingest over a real broker, with a store that fails on a content nobody foresaw."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fleet_protocol.messages import Window, encode
from fleet_protocol.topics import TopicKind, topic_of
from fleet_server.database.engine import open_engine
from fleet_server.database.schema import upgrade
from fleet_server.errors import BusUnavailableError
from fleet_server.ingest.pipeline import Ingest
from fleet_server.message_bus import PahoBus
from fleet_server.message_bus.port import Outgoing
from fleet_server.telemetry_store import EmbeddedStore
from fleet_server.telemetry_store.port import Slice
from tests.end_to_end.fleet import FLEET, eventually
from tests.end_to_end.test_hostile_clients import window
from tests.real_servers.mosquitto import Mosquitto

POISON = 5
_ALL = Slice(fleet=FLEET, start_ns=0, end_ns=2**63 - 1)


class StoreWithoutFormForOneWindow(EmbeddedStore):
    """Fails for every batch with the window of sequence POISON, as an engine may for a value it has no form for."""

    def write(self, fleet: str, windows: Sequence[Window]) -> None:
        """See the port."""
        if any(found.sequence == POISON for found in windows):
            raise OverflowError("this number has no form here")
        super().write(fleet, windows)


def test_a_window_the_store_has_no_form_for_is_counted_and_takes_no_other_with_it(
    tmp_path: Path, mosquitto: Mosquitto
) -> None:
    engine = open_engine(f"sqlite:///{tmp_path / 'fleet.db'}")
    upgrade(engine)
    store = StoreWithoutFormForOneWindow(tmp_path / "telemetry.db")
    store.set_up(raw_retention_s=86_400)

    def make_bus(name: str) -> PahoBus:
        return PahoBus(url=mosquitto.url, client_id=name, username=None, password=None)

    bus, sender = make_bus("server"), make_bus("sender")
    ingest = Ingest(bus=bus, store=store, engine=engine, fleet=FLEET, on_new_session=lambda: None)
    ingest.start()
    sender.start(["nothing/of/interest"], lambda _message: None, lambda: None)
    try:
        eventually(lambda: _is_connected(bus) and _is_connected(sender), 20, "both are connected")
        topic = topic_of(FLEET, "camera-1", TopicKind.TELEMETRY)
        windows = [window("camera-1", sequence) for sequence in range(1, 11)]
        sender.publish([Outgoing(topic=topic, payload=encode(each)) for each in windows], timeout_s=10)
        eventually(lambda: len(store.windows(_ALL)) == 9, 20, "every other window is stored")
        assert {found.sequence for found in store.windows(_ALL)} == set(range(1, 11)) - {POISON}
        eventually(lambda: ingest.counters().get("edgefleet_ingest_unusable_total") == 1, 10, "it is counted, once")
    finally:
        ingest.stop()
        bus.stop()
        sender.stop()
        store.close()
        engine.dispose()


def _is_connected(bus: PahoBus) -> bool:
    try:
        bus.check()
    except BusUnavailableError:
        return False
    return True
