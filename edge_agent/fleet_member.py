"""What makes an agent a member of a fleet: the MQTT link and, where keys are trusted, updates.

Invariant: a device without trusted keys still sends telemetry, and never installs anything.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

import onnxruntime

from edge_agent.config import AgentConfig, ServerSection, TrustSection
from edge_agent.control.bundle_store import BundleStore
from edge_agent.control.desired import verify_desired
from edge_agent.control.download import Downloader
from edge_agent.control.installation import WarmModel
from edge_agent.control.state import StateFile
from edge_agent.control.updater import Updater
from edge_agent.errors import ConfigError
from edge_agent.model_room import ModelRoom, Placement, Role
from edge_agent.mqtt_link import MqttLink
from edge_agent.runtime.cpu import cpu_signature
from edge_agent.serving import ServingPath
from edge_agent.telemetry.outbox import Outbox
from edge_agent.telemetry.recorder import Recorder
from edge_agent.telemetry.series import ServingStats
from edge_agent.version import AGENT_VERSION
from fleet_protocol.errors import KeyFileError
from fleet_protocol.keys import PublicKey
from fleet_protocol.messages import Assignment, Desired, EventKind, ModelReport, Phase, Reported

_LOG = logging.getLogger(__name__)


class FleetMember:
    """Owns the link and the updater of one device. It is the updater's `ServingRoom`."""

    def __init__(
        self,
        *,
        config: AgentConfig,
        outbox: Outbox,
        recorder: Recorder,
        path: ServingPath,
        models: ModelRoom,
    ) -> None:
        if config.device is None or config.mqtt is None or config.data_dir is None:
            raise ConfigError("a fleet member needs [device], [mqtt] and data_dir")
        self._device, self._config, self._outbox = config.device, config, outbox
        self._recorder, self._path, self._models = recorder, path, models
        self._loading = models.loading
        self._store = _open_store(config, config.data_dir)
        password = _read_password("mqtt.password_file", config.mqtt.password_file)
        self._updater = self._make_updater(config, config.data_dir, password)
        self._link = MqttLink(
            settings=config.mqtt,
            fleet=config.device.fleet,
            device=config.device.id,
            password=password,
            outbox=outbox,
            make_report=self._make_report,
            on_desired=self._on_desired,
        )
        recorder.on_record = self._link.records_waiting

    def start(self) -> None:
        """Put the fleet's active models to work, then connect."""
        self._recorder.emit(EventKind.AGENT_STARTED, detail=f"edgefleet {AGENT_VERSION}")
        if self._updater is not None:
            self._updater.start()
        self._link.start()

    def stop(self) -> None:
        """End updates, say goodbye to the broker."""
        if self._updater is not None:
            self._updater.stop()
        self._link.stop()

    @property
    def is_connected(self) -> bool:
        """Whether the broker is there."""
        return self._link.is_connected

    def reports(self) -> list[ModelReport]:
        """The fleet's models here and their phases."""
        return self._updater.reports() if self._updater else []

    def put_to_work(self, assignment: Assignment, warm: WarmModel, *, bundle: str) -> None:
        """Let a warm model answer as the assigned arm; what the config's files answer under its name ends then."""
        role = Role(
            name=assignment.model,
            version=warm.manifest.version,
            variant=warm.variant.name,
            arm=assignment.arm,
            weight=assignment.weight,
            shadow=assignment.shadow,
            bundle=bundle,
            labels=tuple(warm.manifest.labels),
            task=warm.manifest.task,
        )
        self._models.put_to_work(
            Placement(role=role, path=warm.path, load=warm.load, manifest=warm.manifest), warm.slot
        )
        if not assignment.shadow:
            self._models.displace_files(assignment.model)

    def take_from_work(self, model: str, arm: str) -> None:
        """Let nothing of the fleet's serve as this arm."""
        if self.serving_bundle(model, arm) is not None:
            self._path.take_from_work(model, arm)

    def set_weight(self, model: str, arm: str, weight: float) -> None:
        """Change the share of an arm that answers."""
        self._path.live.set_weight(model, arm, weight)

    def serving_bundle(self, model: str, arm: str) -> str | None:
        """The bundle that serves as this arm now."""
        serving = self._path.live.find(model, arm)
        return serving.bundle if serving else None

    def stats(self, model: str, arm: str) -> ServingStats | None:
        """What the model that serves as this arm now did so far."""
        return self._path.stats(model, arm)

    def emit(self, kind: EventKind, *, model: str, bundle: str, phase: Phase | None, detail: str) -> None:
        """Put an event into the outbox."""
        self._recorder.emit(kind, model=model, bundle=bundle, phase=phase, detail=detail)

    def report(self) -> None:
        """The reported state changed."""
        self._link.report_changed()

    def _on_desired(self, envelope: bytes) -> None:
        if self._updater is None:
            _LOG.warning("a desired state arrived but [trust] lists no keys: nothing is installed")
            return
        self._updater.offer(envelope)

    def _make_report(self, sequence: int) -> Reported:
        return Reported(
            device=self._device.id,
            boot_id=self._outbox.boot_id,
            sequence=sequence,
            at_ns=time.time_ns(),
            generation=self._updater.generation if self._updater else 0,
            models=self.reports(),
            agent_version=AGENT_VERSION,
            cpu_signature=cpu_signature(),
            onnxruntime_version=onnxruntime.__version__[:64],
            labels=self._device.labels,
        )

    def _make_updater(self, config: AgentConfig, data_dir: Path, password: str | None) -> Updater | None:
        trust, server = config.trust, config.server
        if trust is None or server is None or self._store is None:
            return None
        return Updater(
            state_file=StateFile(data_dir / "control"),
            store=self._store,
            make_downloader=lambda wait: self._make_downloader(server, password, wait),
            verify=self._verifier(trust),
            room=self,
            loading=self._loading,
        )

    def _make_downloader(
        self, server: ServerSection, password: str | None, wait: Callable[[float], bool]
    ) -> Downloader:
        own = _read_password("server.password_file", server.password_file)
        return Downloader(
            base_url=server.url,
            username=self._device.id,
            password=own if own is not None else password or "",
            attempts=self._config.update.download_attempts,
            backoff_max_s=self._config.update.backoff_max_s,
            wait=wait,
        )

    def _verifier(self, trust: TrustSection) -> Callable[[bytes], Desired]:
        keys = _load_keys(trust.director_keys)
        return lambda envelope: verify_desired(
            envelope,
            fleet=self._device.fleet,
            device=self._device.id,
            director_keys=keys,
            threshold=trust.director_threshold,
        )


def _open_store(config: AgentConfig, data_dir: Path) -> BundleStore | None:
    if config.trust is None:
        return None
    return BundleStore(
        data_dir / "bundles",
        release_keys=_load_keys(config.trust.release_keys),
        threshold=config.trust.release_threshold,
        reserve_bytes=config.update.reserve_disk_bytes,
    )


def _load_keys(paths: list[Path]) -> list[PublicKey]:
    try:
        return [PublicKey.load(path) for path in paths]
    except KeyFileError as error:
        raise ConfigError(f"[trust] {error}") from None


def _read_password(setting: str, path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{setting} {path} cannot be read: {error}") from None
