"""Brings models into service and out of it: memory admitted → loaded → warm → flipped → the old one drained.

Two kinds of models share a name's space: the config's plain files, which this room loads at the start, again
when asked by name, or not at all; and the fleet's bundles, which `control` decides about. Invariants: a name
that the fleet manages is never loaded or unloaded by a local caller; calls go on with the old model until the
new one is warm; what cannot be loaded leaves the old one at work.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from edge_agent.config import AgentConfig, ArmSection, ModelSection
from edge_agent.errors import AgentError, InvalidInputError, UnknownModelError
from edge_agent.local_api.service import RepositoryEntry, RepositoryState
from edge_agent.runtime.lane_scaling import LaneScaler, ScalingHistory
from edge_agent.runtime.lanes import Lanes
from edge_agent.runtime.live_models import Serving
from edge_agent.runtime.loading import Loading, load_model
from edge_agent.runtime.model_file import external_files
from edge_agent.runtime.residency import ModelSlot, Residency
from edge_agent.runtime.session import Model
from edge_agent.runtime.watched_lanes import WatchedLanes
from edge_agent.serving import ServingPath
from edge_agent.telemetry.recorder import Recorder
from edge_agent.telemetry.series import SeriesKey
from edge_agent.tuner import BackgroundTuner
from fleet_protocol.manifest import Manifest
from fleet_protocol.messages import MAIN_ARM, EventKind

_LOG = logging.getLogger(__name__)
FILE_VARIANT = "file"
_TUNING_COPIES = 4  # measuring holds two sessions, each up to twice as large as its file


class Role(Struct, frozen=True, kw_only=True):
    """What a model is to be when it serves."""

    name: str
    version: str
    variant: str
    arm: str = MAIN_ARM
    weight: float = 1.0
    shadow: bool = False
    bundle: str | None = None
    labels: tuple[str, ...] = ()
    task: str = ""
    pinned: bool = False

    @property
    def title(self) -> str:
        """The role's name for people."""
        return self.name if self.arm == MAIN_ARM else f"{self.name}/{self.arm}"

    @property
    def key(self) -> SeriesKey:
        """The telemetry series of this role."""
        return SeriesKey(self.name, self.version, self.variant, self.arm)


class OnTrial(Struct, frozen=True, kw_only=True):
    """How a model serves that has not proven itself: its runs are watched, its answers are compared if `compare`."""

    hang_timeout_s: float
    compare: bool


class Placement(Struct, frozen=True, kw_only=True):
    """A role, the model file that fills it, and how that is loaded: now, and whenever it comes back."""

    role: Role
    path: Path
    load: Callable[[], Model]
    manifest: Manifest | None = None
    trial: OnTrial | None = None


class ModelRoom:
    """Everything that serves here, and how it came to. Calls from any thread; loads are one at a time."""

    def __init__(
        self,
        *,
        config: AgentConfig,
        files: Mapping[str, ModelSection],
        path: ServingPath,
        residency: Residency,
        recorder: Recorder,
        is_managed: Callable[[str], bool],
    ) -> None:
        self._lanes, self._path, self._recorder = config.lanes, path, recorder
        self._files = dict(files)
        self._is_managed = is_managed
        self._failures: dict[str, str] = {}
        self._changing = threading.Lock()
        self._scaler = LaneScaler(settings=config.lanes)
        self._placed: dict[tuple[str, str], Placement] = {}
        self.loading = Loading(runtime=config.runtime, residency=residency, cache_dir=_cache_dir(config))
        self._tuner: BackgroundTuner | None = None
        if config.runtime.tune and self.loading.cache_dir is not None:
            self._tuner = BackgroundTuner(measure=self._measure, reload=self._reload, is_idle=lambda: path.is_idle)

    def has_to_spare(self) -> bool:
        """Whether the machine bears work that nobody waits for."""
        return self._scaler.machine_has_to_spare()

    def scaling(self) -> ScalingHistory:
        """How the number of lanes changed so far."""
        return self._scaler.history()

    def start(self) -> None:
        """Load every file of the config. Raises ModelLoadError, MemoryBudgetError."""
        for name in self._files:
            self.load(name)

    def stop(self) -> None:
        """Let nothing answer any more."""
        if self._tuner is not None:
            self._tuner.stop()
        self._path.stop()
        self._scaler.stop()

    def load(self, name: str) -> None:
        """Load the files of one model, again if they serve already; see `InferenceService.load_model`.

        All of them or none: no arm is exchanged before every arm is warm.
        """
        section = self._section(name)
        with self._changing:
            warm: list[tuple[Placement, ModelSlot]] = []
            try:
                for placement in self._placements(name, section):
                    warm.append((placement, self._place(placement)))  # noqa: PERF401 - a failure takes these back
            except AgentError as error:
                for _, slot in warm:
                    self.loading.residency.remove(slot)
                self._failures[name] = str(error)
                raise
            for placement, slot in warm:
                self.put_to_work(placement, slot)
            self._failures.pop(name, None)

    def _placements(self, name: str, model: ModelSection) -> Iterator[Placement]:
        files: dict[str, ModelSection | ArmSection] = {MAIN_ARM: model, **model.arms}
        for arm, file in files.items():
            role = Role(
                name=name,
                version=file.version,
                variant=FILE_VARIANT,
                arm=arm,
                weight=file.weight,
                shadow=isinstance(file, ArmSection) and file.shadow,
                labels=tuple(model.labels),
                task=model.task or ("classification" if model.labels else ""),
                pinned=model.pinned,
            )
            yield Placement(role=role, path=file.path, load=partial(self._load_file, name, file.path))

    def _load_file(self, name: str, path: Path) -> Model:
        """A warm model of a file; providers that could not run it are told by an event."""
        loaded = load_model(path, runtime=self.loading.runtime, cache_dir=self.loading.cache_dir)
        for fallback in loaded.fallbacks:
            detail = f"{path.name}: {fallback.provider} is not used: {fallback.reason}"
            _LOG.warning("%s: %s", name, detail)
            self._recorder.emit(EventKind.PROVIDER_FALLBACK, model=name, detail=detail)
        return loaded.model

    def _place(self, placement: Placement) -> ModelSlot:
        """Memory for a model, and the model warm in it. Raises what loading raises, and MemoryBudgetError."""
        role = placement.role
        return self.loading.residency.add(
            role.title,
            placement.load,
            size_hint_bytes=_size_bytes(placement.path),
            path=placement.path,
            pinned=role.pinned,
            must_answer=not role.shadow,
        )

    def put_to_work(self, placement: Placement, slot: ModelSlot) -> None:
        """Let the warm model of `slot` answer in its role; what it replaces is drained and let go."""
        key = (placement.role.name, placement.role.arm)
        self._placed[key] = placement
        trial = placement.trial
        self._path.put_to_work(
            self._serving(placement.role, slot, placement.manifest, self._lanes_for(placement.role.name, trial)),
            compare=trial is not None and trial.compare,
        )
        if self._tuner is not None:
            self._tuner.offer(key, placement.path)

    def end_trial(self, name: str, arm: str) -> None:
        """What serves as this arm has proven itself: it serves like any other from now on."""
        with self._changing:
            placement = self._placed.get((name, arm))
            if placement is not None and placement.trial is not None:
                self._placed[name, arm] = replace(placement, trial=None)
                self._path.end_trial(name, arm, self._lanes_for(name, None))

    def trial_of(self, name: str, arm: str) -> OnTrial | None:
        """How what serves as this arm is on trial; None when it is not."""
        placement = self._placed.get((name, arm))
        return placement.trial if placement is not None else None

    def displace_files(self, name: str) -> None:
        """Take the config's files under `name` from work: the fleet answers there now."""
        for serving in self._path.live.all():
            if serving.name == name and serving.bundle is None:
                self._path.take_from_work(name, serving.arm)

    def _measure(self, file: Path) -> bool:
        """Whether this file's model has faster settings than those by default. Remembers them for its next load."""
        from edge_agent.runtime.loading import tune_model

        runtime, cache_dir = self.loading.runtime, self.loading.cache_dir
        needs_bytes = _TUNING_COPIES * _size_bytes(file) + self.loading.residency.used_bytes
        if cache_dir is None or (runtime.memory_budget_bytes and needs_bytes > runtime.memory_budget_bytes):
            return False
        result = tune_model(file, runtime=runtime, cache_dir=cache_dir)
        return result is not None and result.is_better

    def _reload(self, key: tuple[str, str]) -> None:
        with self._changing:
            placement = self._placed.get(key)
            serving = self._path.live.find(*key)
            if placement is not None and serving is not None and serving.series.key == placement.role.key:
                self.put_to_work(placement, self._place(placement))

    def _lanes_for(self, name: str, trial: OnTrial | None) -> Lanes:
        limit, max_waiting, max_batch = self._lanes.min, self._lanes.max_waiting, self._lanes.max_batch
        if trial is None:
            lanes = Lanes(name=name, limit=limit, max_waiting=max_waiting, max_batch=max_batch)
        else:
            lanes = WatchedLanes(
                name=name,
                limit=limit,
                max_waiting=max_waiting,
                max_batch=max_batch,
                hang_timeout_s=trial.hang_timeout_s,
            )
        self._scaler.watch(lanes)
        return lanes

    def _serving(self, role: Role, slot: ModelSlot, manifest: Manifest | None, lanes: Lanes) -> Serving:
        return Serving(
            name=role.name,
            version=role.version,
            variant=role.variant,
            arm=role.arm,
            weight=role.weight,
            shadow=role.shadow,
            bundle=role.bundle,
            slot=slot,
            lanes=lanes,
            series=self._recorder.serve(role.key, manifest),
            labels=role.labels,
            task=role.task,
        )

    def unload(self, name: str) -> None:
        """Let nothing answer under `name` until it is loaded again; see `InferenceService.unload_model`."""
        self._section(name)
        with self._changing:
            for serving in self._path.live.all():
                if serving.name == name:
                    self._path.take_from_work(name, serving.arm)
            self._failures[name] = "unloaded"

    def entries(self) -> list[RepositoryEntry]:
        """Every model that answers or could be loaded by name, one entry for each of its arms' versions."""
        found = {
            (serving.name, serving.version): RepositoryEntry(
                name=serving.name,
                version=serving.version,
                state=RepositoryState.READY,
                reason="" if serving.slot.model is not None else "asleep: loaded again when it is called",
            )
            for serving in self._path.live.all()
        }
        answering = {name for name, _ in found}
        for name, section in self._files.items():
            if name not in answering:
                found[name, section.version] = RepositoryEntry(
                    name=name,
                    version=section.version,
                    state=RepositoryState.UNAVAILABLE,
                    reason=self._failures.get(name, "not loaded"),
                )
        return [found[key] for key in sorted(found)]

    def _section(self, name: str) -> ModelSection:
        if self._is_managed(name):
            raise InvalidInputError(f"{name} is managed by the fleet: roll it out or back there")
        section = self._files.get(name)
        if section is None:
            known = ", ".join(sorted(self._files)) or "none"
            raise UnknownModelError(f"the config has no model {name[:80]!r}: it has {known}")
        return section


def _cache_dir(config: AgentConfig) -> Path | None:
    """Where optimised graphs and measurements are kept; None without a folder for them."""
    if config.runtime.cache_dir is not None or config.data_dir is None:
        return config.runtime.cache_dir
    return config.data_dir / "cache"


def _size_bytes(path: Path) -> int:
    """The size of a model's files, that with its weights included; 0 for what loading it will complain about."""
    try:
        names = external_files(path) or ()
        return path.stat().st_size + sum((path.parent / name).stat().st_size for name in names)
    except OSError:
        return 0
