"""What makes an agent a member of a fleet: the MQTT link and, where keys are trusted, updates.

Invariant: a device without trusted keys still sends telemetry, and never installs anything.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import onnxruntime

from edge_agent.config import AgentConfig, ServerSection
from edge_agent.control.bundle_store import BundleStore
from edge_agent.control.download import Downloader
from edge_agent.control.installation import WarmModel
from edge_agent.control.root_fetching import TrustKeeper, fetch_root
from edge_agent.control.state import StateFile
from edge_agent.control.time_zone import device_time_zone
from edge_agent.control.trial import Look
from edge_agent.control.trust import KnownTime, RootChain, Trust
from edge_agent.control.updater import Updater
from edge_agent.enrolment.renewal import CertificateKeeper
from edge_agent.errors import ConfigError
from edge_agent.model_room import ModelRoom, OnTrial, Placement, Role
from edge_agent.mqtt_link import MqttLink
from edge_agent.runtime.cpu import cpu_signature
from edge_agent.runtime.memory import resident_bytes
from edge_agent.service.heartbeat import Heartbeat
from edge_agent.serving import ServingPath
from edge_agent.telemetry.outbox import Outbox
from edge_agent.telemetry.recorder import Recorder
from edge_agent.version import AGENT_VERSION
from fleet_protocol.errors import KeyFileError
from fleet_protocol.keys import PublicKey
from fleet_protocol.messages import MAX_DETAIL_CHARS, Assignment, EventKind, ModelReport, Phase, Probation, Reported
from fleet_protocol.root import KeyRule

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
        self._trust = _make_trust(config, config.data_dir)
        self._store = _open_store(config, config.data_dir, self._trust)
        password = _read_password("mqtt.password_file", config.mqtt.password_file)
        self._updater = self._make_updater(config, config.data_dir, password)
        self._keeper = self._make_keeper(config)
        self._certificate = self._make_certificate_keeper(config, password)
        self._link = MqttLink(
            settings=config.mqtt,
            fleet=config.device.fleet,
            device=config.device.id,
            password=password,
            outbox=outbox,
            make_report=self._make_report,
            on_desired=self._on_desired,
            on_turned_away=self._certificate.turned_away if self._certificate else lambda: None,
        )
        recorder.on_record = self._link.records_waiting

    def start(self) -> None:
        """Put the fleet's active models to work, then connect."""
        self._recorder.emit(EventKind.AGENT_STARTED, detail=f"edgefleet {AGENT_VERSION}")
        if self._updater is not None:
            self._updater.start()
        if self._keeper is not None:
            self._keeper.start()
        if self._certificate is not None:
            self._certificate.start()
        self._link.start()

    def stop(self) -> None:
        """End updates, say goodbye to the broker."""
        if self._certificate is not None:
            self._certificate.stop()
        if self._keeper is not None:
            self._keeper.stop()
        if self._updater is not None:
            self._updater.stop()
        self._link.stop()

    @property
    def is_connected(self) -> bool:
        """Whether the broker is there."""
        return self._link.is_connected

    @property
    def heartbeat(self) -> Heartbeat | None:
        """The updater's sign of life, None without updates."""
        return self._updater.heartbeat if self._updater else None

    def reports(self) -> list[ModelReport]:
        """The fleet's models here and their phases."""
        reports = self._updater.reports() if self._updater else []
        why = self._keeper.held_back()[:MAX_DETAIL_CHARS] if self._keeper else ""
        return [_waiting(report, why) for report in reports] if why else reports

    def put_to_work(
        self, assignment: Assignment, warm: WarmModel, *, bundle: str, on_trial: Probation | None = None
    ) -> None:
        """Let a warm model answer as the assigned arm; what the config's files answer under its name ends then."""
        trial = None
        if on_trial is not None:
            trial = OnTrial(hang_timeout_s=on_trial.hang_timeout_s, compare=on_trial.max_shadow_disagreement < 1)
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
            Placement(role=role, path=warm.path, load=warm.load, manifest=warm.manifest, trial=trial), warm.slot
        )
        if not assignment.shadow:
            self._models.displace_files(assignment.model)

    def end_trial(self, model: str, arm: str) -> None:
        """What serves as this arm has proven itself."""
        self._models.end_trial(model, arm)

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

    def look(self, model: str, arm: str) -> Look | None:
        """What the model that serves as this arm did so far, and what it does now."""
        serving, stats = self._path.live.find(model, arm), self._path.stats(model, arm)
        if serving is None or stats is None:
            return None
        comparison, trial = serving.comparison, self._models.trial_of(model, arm)
        why_not = ""
        if trial is not None and trial.compare and not serving.shadow and (comparison is None or comparison.is_over):
            why_not = "not compared with the incumbent: it is not in memory beside the candidate"
        return Look(
            stats=stats,
            memory_bytes=serving.slot.memory_bytes,
            process_bytes=resident_bytes() - self._loading.residency.used_bytes,
            oldest_run_s=self._path.oldest_run_s(model, arm),
            compared=comparison.compared if comparison else 0,
            disagreed=comparison.disagreed if comparison else 0,
            comparison=why_not,
        )

    def emit(self, kind: EventKind, *, model: str, bundle: str, phase: Phase | None, detail: str) -> None:
        """Put an event into the outbox."""
        self._recorder.emit(kind, model=model, bundle=bundle, phase=phase, detail=detail)

    def report(self) -> None:
        """The reported state changed."""
        self._link.report_changed()

    def _on_desired(self, envelope: bytes) -> None:
        if self._keeper is None:
            _LOG.warning("a desired state arrived but there is no [trust]: nothing is installed")
            return
        self._keeper.offer(envelope)

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
            time_zone=device_time_zone(),
            root_version=self._trust.root_version if self._trust else 0,
            certificate_expires_ns=self._certificate.expires_ns if self._certificate else 0,
            held_back=(self._keeper.held_back() if self._keeper else "")[:MAX_DETAIL_CHARS],
        )

    def _make_updater(self, config: AgentConfig, data_dir: Path, password: str | None) -> Updater | None:
        trust, server = self._trust, config.server
        if trust is None or server is None or self._store is None:
            return None
        return Updater(
            state_file=StateFile(data_dir / "control"),
            store=self._store,
            make_downloader=lambda wait: self._make_downloader(server, password, wait),
            verify=trust.verify,
            room=self,
            loading=self._loading,
            trust=trust,
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
            max_bytes_per_s=self._config.update.max_bytes_per_s,
            ca_file=server.ca_file,
            deltas=self._config.update.deltas,
        )

    def _make_certificate_keeper(self, config: AgentConfig, password: str | None) -> CertificateKeeper | None:
        """Where certificate and key are one file, which `edge-agent enrol` wrote, and the server is known."""
        mqtt, server = config.mqtt, config.server
        if mqtt is None or server is None or mqtt.certificate_file is None or not mqtt.renew_certificate:
            return None
        if mqtt.certificate_file != mqtt.key_file:
            return None
        own = _read_password("server.password_file", server.password_file)
        return CertificateKeeper(
            path=mqtt.certificate_file,
            server_url=server.url,
            ca_file=server.ca_file,
            fleet=self._device.fleet,
            device=self._device.id,
            secret=own if own is not None else password or "",
            on_change=self.report,
        )

    def _make_keeper(self, config: AgentConfig) -> TrustKeeper | None:
        trust, server, updater = self._trust, config.server, self._updater
        if trust is None or server is None or updater is None:
            return None
        return TrustKeeper(
            trust,
            fetch=lambda version: fetch_root(server.url, version, ca_file=server.ca_file),
            deliver=updater.offer,
            in_force=lambda: updater.desired,
            on_change=self.report,
        )


def _waiting(report: ModelReport, why: str) -> ModelReport:
    """The report with the reason why its update does not go on, where it waits to begin or to be activated."""
    waits = report.phase in (Phase.ACKED, Phase.STAGED) and not report.error
    return msgspec.structs.replace(report, error=why) if waits else report


def _make_trust(config: AgentConfig, data_dir: Path) -> Trust | None:
    section, device = config.trust, config.device
    if section is None or device is None:
        return None
    chain, director = None, None
    if section.root is not None:
        chain = RootChain(data_dir / "roots", pinned=section.root, fleet=device.fleet)
    else:
        director = KeyRule(tuple(_load_keys(section.director_keys)), section.director_threshold)
    return Trust(fleet=device.fleet, device=device.id, director=director, chain=chain, known_time=KnownTime())


def _open_store(config: AgentConfig, data_dir: Path, trust: Trust | None) -> BundleStore | None:
    if config.trust is None or trust is None:
        return None
    store = BundleStore(
        data_dir / "bundles",
        release_keys=_load_keys(config.trust.release_keys),
        threshold=config.trust.release_threshold,
        reserve_bytes=config.update.reserve_disk_bytes,
    )
    if trust.chain is not None:
        store.believe(trust.chain.release_rules)
    return store


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
