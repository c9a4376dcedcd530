"""The fleet server's part of an update, played over MQTT: signs desired states, hears what the device says."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence

import msgspec
import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

from fleet_protocol.envelope import DESIRED_TYPE, sign_envelope
from fleet_protocol.keys import PrivateKey
from fleet_protocol.messages import (
    MAIN_ARM,
    Assignment,
    Desired,
    Event,
    EventKind,
    ModelReport,
    Phase,
    Probation,
    Reported,
    decode,
    encode,
)
from fleet_protocol.topics import TopicKind, fleet_filter, parse_topic, topic_of
from tests.end_to_end.updates.bundles import MODEL, Bundle, Keys
from tests.real_servers.processes import wait_until

FLEET, DEVICE = "factory", "press-7"
AT_ONCE = Probation(duration_s=0.2, min_inferences=0)
"""A probation that an idle device passes quickly."""
WAIT_S = 20.0


class Director:
    """One device's server, as far as updates go. `with Director(...)` connects and disconnects it."""

    def __init__(self, *, broker_port: int, keys: Keys) -> None:
        self.keys = keys
        self.generation = 0
        self._reports: list[tuple[Reported, ModelReport]] = []
        self._bare_reports: list[Reported] = []
        self._events: dict[tuple[str, int], Event] = {}
        self._ready, self._changed = threading.Event(), threading.Condition()
        self._client = paho.Client(CallbackAPIVersion.VERSION2, client_id="director")
        self._client.on_connect = self._on_connect
        self._client.on_subscribe = lambda *_: self._ready.set()
        self._client.on_message = self._on_message
        self._port = broker_port

    def __enter__(self) -> Director:
        self._client.connect("127.0.0.1", self._port)
        self._client.loop_start()
        assert self._ready.wait(WAIT_S), "the director could not subscribe"
        return self

    def __exit__(self, *_: object) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def desired(
        self,
        *bundles: Bundle,
        generation: int,
        retry: Sequence[Bundle] = (),
        probation: Probation = AT_ONCE,
        fleet: str = FLEET,
        device: str = DEVICE,
    ) -> Desired:
        """A desired state, not signed yet."""
        return Desired(
            fleet=fleet,
            device=device,
            generation=generation,
            issued_at_ns=time.time_ns(),
            assignments=[Assignment(model=MODEL, version=bundle.version, bundle=bundle.digest) for bundle in bundles],
            probation=probation,
            retry=[bundle.digest for bundle in retry],
        )

    def assign(self, bundle: Bundle, *, retry: bool = False, probation: Probation = AT_ONCE, variant: str = "") -> int:
        """Publish the next generation, with a hint where `variant` is given; returns it once the broker holds it."""
        self.generation += 1
        again = [bundle] if retry else []
        desired = self.desired(bundle, generation=self.generation, retry=again, probation=probation)
        hinted = [msgspec.structs.replace(assignment, variant=variant) for assignment in desired.assignments]
        self.publish(self.signed(msgspec.structs.replace(desired, assignments=hinted)))
        return self.generation

    def assign_arms(self, arms: Mapping[str, tuple[Bundle, float]], *, retry: bool = False) -> int:
        """Publish the next generation with these bundles and weights by arm; a weight of 0 makes a shadow."""
        self.generation += 1
        assignments = [
            Assignment(
                model=MODEL,
                version=bundle.version,
                bundle=bundle.digest,
                arm=arm,
                weight=weight or 1.0,
                shadow=weight == 0,
            )
            for arm, (bundle, weight) in arms.items()
        ]
        again = [bundle for bundle, _ in arms.values()] if retry else []
        desired = self.desired(generation=self.generation, retry=again)
        self.publish(self.signed(msgspec.structs.replace(desired, assignments=assignments)))
        return self.generation

    def signed(self, desired: Desired, signers: Sequence[PrivateKey] | None = None) -> bytes:
        """The envelope as the director, or somebody else, signs it."""
        return sign_envelope(DESIRED_TYPE, encode(desired), [self.keys.director] if signers is None else signers)

    def publish(self, payload: bytes) -> None:
        """Put any payload on the device's desired topic, retained."""
        self._client.publish(topic_of(FLEET, DEVICE, TopicKind.DESIRED), payload, 1, retain=True).wait_for_publish(
            WAIT_S
        )

    def wait_for(
        self,
        phase: Phase | None = None,
        *,
        generation: int | None = None,
        since_ns: int = 0,
        where: Callable[[ModelReport], bool] = lambda _: True,
        timeout_s: float = WAIT_S,
        arm: str = MAIN_ARM,
    ) -> ModelReport:
        """The newest report about the model's arm once it fits. Raises TimeoutError with the last report."""
        wanted_generation = self.generation if generation is None else generation

        def fitting() -> ModelReport | None:
            newest = next((entry for entry in reversed(self._reports) if entry[1].arm == arm), None)
            if newest is None:
                return None
            reported, report = newest
            fits = reported.generation == wanted_generation and reported.at_ns >= since_ns and where(report)
            return report if fits and phase in (None, report.phase) else None

        try:
            return wait_until(fitting, timeout_s, f"a report of {phase} for generation {wanted_generation} came")  # type: ignore[return-value]  # a true value is a report
        except TimeoutError as error:
            last = self._reports[-1] if self._reports else "none"
            raise TimeoutError(f"{error}; the last report: {last}") from None

    def wait_for_end(self, *, since_ns: int = 0, arm: str = MAIN_ARM) -> ModelReport:
        """The report of the current generation's end, whichever it is."""
        return self.wait_for(since_ns=since_ns, where=lambda report: report.phase.is_end, arm=arm)

    def wait_for_another_report(self, count: int) -> Reported:
        """The newest report once there are more than `count`."""
        wait_until(lambda: len(self._bare_reports) > count, WAIT_S, "the device reported again")
        return self._bare_reports[-1]

    def wait_for_event(self, kind: EventKind, *, timeout_s: float = WAIT_S) -> Event:
        """The newest event of a kind."""

        def found() -> Event | None:
            return next((event for event in reversed(self.events()) if event.kind is kind), None)

        return wait_until(found, timeout_s, f"an event {kind.value} came")  # type: ignore[return-value]  # a true value is an event

    def wait_until_told(self, phase: Phase) -> None:
        """Wait for the event that tells of a phase: it is the last that an update writes."""
        wait_until(lambda: any(event.phase is phase for event in self.events()), WAIT_S, f"an event told of {phase}")

    def newest(self) -> Reported:
        """The newest report as a whole."""
        return self._bare_reports[-1]

    @property
    def report_count(self) -> int:
        """Reports heard so far."""
        return len(self._bare_reports)

    def events(self) -> list[Event]:
        """Every event heard, each once, in the order of their arrival."""
        return list(self._events.values())

    def phases(self, bundle: Bundle) -> list[Phase]:
        """The phases of one bundle that events told, in order."""
        return [event.phase for event in self.events() if event.bundle == bundle.digest and event.phase is not None]

    def _on_connect(self, client: paho.Client, *_: object) -> None:
        client.subscribe([(fleet_filter(FLEET, TopicKind.REPORTED), 1), (fleet_filter(FLEET, TopicKind.EVENTS), 1)])

    def _on_message(self, _client: paho.Client, _data: object, message: paho.MQTTMessage) -> None:
        if parse_topic(message.topic).kind is TopicKind.EVENTS:
            event = decode(Event, bytes(message.payload))
            self._events.setdefault((event.boot_id, event.sequence), event)
            return
        reported = decode(Reported, bytes(message.payload))
        self._bare_reports.append(reported)
        self._reports += [(reported, report) for report in reported.models if report.model == MODEL]
