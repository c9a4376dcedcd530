"""Drives thousands of virtual devices over one connection to the broker.

One thread, one round after another: take what arrived → let devices do what is due → publish. Invariants:
- the network's thread never waits for this one: a device's newest desired replaces an older one, and
  confirmations that overflow MAX_CONFIRMATIONS_WAITING are lost harmlessly, because unconfirmed records are sent
  again and the server drops repeats;
- what could not be published is published again before anything new: while the broker is away no window closes,
  and the next one covers the longer span;
- windows of different devices close evenly spread over the window's length.

A load tool: it signs in with the server's credential, which may write for the whole fleet, so there is no last
will per device. A process that is killed leaves its devices shown as online.
"""

from __future__ import annotations

import heapq
import logging
import secrets
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

from fleet_protocol.envelope import DESIRED_TYPE, read_unverified, verify_envelope
from fleet_protocol.errors import ProtocolError
from fleet_protocol.keys import PublicKey
from fleet_protocol.messages import Desired, Stored, decode
from fleet_protocol.topics import RETAINED, TopicKind, fleet_filter, parse_topic, topic_of
from fleet_server.errors import BusUnavailableError, InvalidRequestError
from fleet_server.message_bus.port import Incoming, MessageBus, Outgoing
from fleet_server.simulator.behaviour import FleetBehaviour
from fleet_server.simulator.generator import device_names
from fleet_server.simulator.virtual_device import CONFIRM_TIMEOUT_S, Record, VirtualDevice

MAX_DEVICES = 100_000
MAX_BATCH = 500
MAX_CONFIRMATIONS_WAITING = 100_000
PUBLISH_TIMEOUT_S = 10.0
_ROUND_S = 0.02
_BROKER_RETRY_S = 0.5

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What the devices did so far; `published` counts messages, repeats among them, `lost` windows that a bad net took
    for ever."""

    devices: int
    windows: int
    predictions: int
    correct: int
    dropped: int
    lost: int
    unconfirmed: int
    published: int
    refused: int
    versions: dict[str, int]


class Simulation:
    """`devices` devices called PREFIX-00001 and so on. `director_keys` check desired states; without any they are
    believed, since nothing of them runs here. `bus` is started and stopped with the simulation."""

    def __init__(
        self,
        *,
        bus: MessageBus,
        fleet: str,
        devices: int,
        behaviour: FleetBehaviour,
        prefix: str = "sim",
        seed: int = 0,
        director_keys: Sequence[PublicKey] = (),
        confirm_timeout_s: float = CONFIRM_TIMEOUT_S,
    ) -> None:
        if not 1 <= devices <= MAX_DEVICES:
            raise InvalidRequestError(f"{devices} devices: one process simulates 1 to {MAX_DEVICES}")
        self._bus, self._fleet, self._window_s = bus, fleet, behaviour.window_s
        self._director_keys, self._confirm_timeout_s = director_keys, confirm_timeout_s
        boot_id = f"{secrets.token_hex(4)}-00000001"  # never the seed's: a repeated boot would only send repeats
        now_ns = time.time_ns()
        self.devices = {
            name: VirtualDevice(
                name=name,
                index=index,
                boot_id=boot_id,
                seed=seed,
                behaviour=behaviour,
                started_ns=now_ns,
                confirm_timeout_s=confirm_timeout_s,
            )
            for index, name in enumerate(device_names(prefix, devices))
        }
        for kind in TopicKind:
            topic_of(fleet, f"{prefix}-00001", kind)  # raises for a name that no topic can hold
        self._windows_due: list[tuple[float, str]] = []
        self._steps_due: dict[str, float] = {}
        self._outgoing: deque[Outgoing] = deque()
        self._desired: dict[str, bytes] = {}
        self._stored: deque[Stored] = deque(maxlen=MAX_CONFIRMATIONS_WAITING)
        self._published = self._refused = 0
        self._drain_until_s = 0.0
        self._announce, self._stop = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="simulation", daemon=True)

    def start(self) -> None:
        """Connect, and let the devices come online as soon as the broker is there."""
        begin_s, count = time.monotonic(), len(self.devices)
        self._windows_due = [
            (begin_s + self._window_s * (index + 1) / count, name) for index, name in enumerate(self.devices)
        ]
        self._announce.set()
        filters = [fleet_filter(self._fleet, TopicKind.DESIRED), fleet_filter(self._fleet, TopicKind.STORED)]
        self._bus.start(filters, self._take_message, self._announce.set)
        self._thread.start()

    def stop(self, *, drain_s: float = 30.0) -> bool:
        """Close the last windows, wait up to `drain_s` for the server to confirm everything, and go offline.

        Whether everything was confirmed.
        """
        self._drain_until_s = time.monotonic() + drain_s
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()
        self._bus.stop()
        return not any(device.unconfirmed for device in self.devices.values())

    def summary(self) -> Summary:
        """What was done so far."""
        every = list(self.devices.values())
        versions: dict[str, int] = {}
        for device in every:
            for model, version in device.running().items():
                versions[f"{model} {version}"] = versions.get(f"{model} {version}", 0) + 1
        return Summary(
            devices=len(every),
            windows=sum(device.told.windows for device in every),
            predictions=sum(device.told.predictions for device in every),
            correct=sum(device.told.correct for device in every),
            dropped=sum(device.told.dropped for device in every),
            lost=sum(device.told.lost for device in every),
            unconfirmed=sum(device.unconfirmed for device in every),
            published=self._published,
            refused=self._refused,
            versions=dict(sorted(versions.items())),
        )

    def _take_message(self, message: Incoming) -> None:
        """In the network's thread: note what came, never wait."""
        try:
            topic = parse_topic(message.topic)
            if topic.device in self.devices and message.payload:
                if topic.kind is TopicKind.DESIRED:
                    self._desired[topic.device] = message.payload
                else:
                    self._stored.append(decode(Stored, message.payload))
        except ProtocolError as error:
            self._refused += 1
            _LOG.warning("a message on %s is refused: %s", message.topic[:200], error)
        self._bus.acknowledge([message])

    def _run(self) -> None:
        while not self._stop.is_set():
            self._take_confirmations()
            # room for what is new only once what waits is on its way
            if len(self._outgoing) < MAX_BATCH:
                self._let_devices_act()
            self._publish()
            self._stop.wait(0.0 if self._outgoing else _ROUND_S)
        self._say_goodbye()

    def _let_devices_act(self) -> None:
        if self._announce.is_set():
            self._announce.clear()
            now_ns = time.time_ns()
            for device in self.devices.values():
                self._say(device, [device.presence(online=True, now_ns=now_ns), device.report(now_ns=now_ns)])
        self._take_desired()
        now_s, now_ns = time.monotonic(), time.time_ns()
        for name in [name for name, due_s in self._steps_due.items() if due_s <= now_s]:
            device = self.devices[name]
            self._say(device, device.step(now_s=now_s, now_ns=now_ns))
            self._note_next_step(device)
        for _ in range(MAX_BATCH):
            if self._windows_due[0][0] > now_s:
                break
            due_s, name = heapq.heappop(self._windows_due)
            heapq.heappush(self._windows_due, (max(due_s + self._window_s, now_s), name))
            device = self.devices[name]
            self._say(device, device.close_windows(now_s=now_s, now_ns=now_ns))
            self._say(device, device.overdue(before_s=now_s - self._confirm_timeout_s, now_s=now_s))

    def _say_goodbye(self) -> None:
        """The last windows, until they are confirmed or the time is over; then offline, best effort."""
        now_s, now_ns = time.monotonic(), time.time_ns()
        for device in self.devices.values():
            self._say(device, device.close_windows(now_s=now_s, now_ns=now_ns))
        while time.monotonic() < self._drain_until_s:
            self._take_confirmations()
            if not self._outgoing:
                if not any(device.unconfirmed for device in self.devices.values()):
                    break
                now_s = time.monotonic()
                for device in self.devices.values():
                    self._say(device, device.overdue(before_s=now_s - self._confirm_timeout_s, now_s=now_s))
            if not self._publish() or not self._outgoing:
                time.sleep(_ROUND_S)
        for device in self.devices.values():
            self._say(device, [device.presence(online=False, now_ns=time.time_ns())])
        while self._outgoing and self._publish():
            pass

    def _take_confirmations(self) -> None:
        for _ in range(len(self._stored)):
            stored = self._stored.popleft()
            if device := self.devices.get(stored.device):
                device.confirm(stored.boot_id, stored.ranges)

    def _take_desired(self) -> None:
        for name in list(self._desired):
            device = self.devices[name]
            try:
                desired = self._read_desired(self._desired.pop(name), name)
            except ProtocolError as error:
                self._refused += 1
                _LOG.warning("device %s refuses a desired state: %s", name, error)
                continue
            now_s = time.monotonic()
            self._say(device, device.accept(desired, now_s=now_s, now_ns=time.time_ns()))
            self._note_next_step(device)

    def _read_desired(self, envelope: bytes, device: str) -> Desired:
        keys = self._director_keys
        payload = verify_envelope(envelope, DESIRED_TYPE, keys, 1) if keys else read_unverified(envelope, DESIRED_TYPE)
        desired = decode(Desired, payload)
        if (desired.fleet, desired.device) != (self._fleet, device):
            raise ProtocolError(f"it is for {desired.fleet}/{desired.device}, this is {self._fleet}/{device}")
        return desired

    def _note_next_step(self, device: VirtualDevice) -> None:
        due_s = device.next_step_s()
        if due_s is None:
            self._steps_due.pop(device.name, None)
        else:
            self._steps_due[device.name] = due_s

    def _say(self, device: VirtualDevice, records: Iterable[Record]) -> None:
        for kind, payload in records:
            topic = topic_of(self._fleet, device.name, kind)
            self._outgoing.append(Outgoing(topic=topic, payload=payload, retain=kind in RETAINED))

    def _publish(self) -> bool:
        """Send what waits, a batch at most. False when the broker did not take it: it goes first next time."""
        batch = list(islice(self._outgoing, MAX_BATCH))
        if not batch:
            return True
        try:
            self._bus.publish(batch, timeout_s=PUBLISH_TIMEOUT_S)
        except BusUnavailableError as error:
            _LOG.debug("the simulation waits: %s", error)
            self._stop.wait(_BROKER_RETRY_S)
            return False
        for _ in batch:
            self._outgoing.popleft()
        self._published += len(batch)
        return True
