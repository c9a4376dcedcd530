"""The Agent: opens the rooms in order, closes them in reverse, and is the in-process API.

Order: outbox → telemetry → the models of plain files → updates (which put the fleet's models to work) →
the MQTT link → the local API. Inference works from the third step on and never needs the later ones.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from edge_agent.config import AgentConfig, ModelSection, check_config, load_config
from edge_agent.errors import AgentError, ConfigError
from edge_agent.local_api.service import (
    DEFAULT_CALL,
    CallOptions,
    CallStatistics,
    Health,
    ModelDescription,
    RepositoryEntry,
)
from edge_agent.model_room import ModelRoom
from edge_agent.prediction import Prediction
from edge_agent.runtime.residency import LOAD_FAILED, Residency
from edge_agent.serving import ServingPath
from edge_agent.telemetry.recorder import Recorder
from fleet_protocol.errors import InvalidName
from fleet_protocol.messages import EventKind, Phase
from fleet_protocol.names import check_name

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from edge_agent.fleet_member import FleetMember
    from edge_agent.local_api.server import LocalApi
    from edge_agent.runtime.live_models import Serving
    from edge_agent.service.liveness import Liveness
    from edge_agent.telemetry.outbox import Outbox

_LOG = logging.getLogger(__name__)
_STANDALONE_DEVICE = "standalone"


class Agent:
    """One device's agent.

    >>> with Agent(models={"kws": "kws.onnx"}) as agent:        # doctest: +SKIP
    ...     agent.infer("kws", {"input_1": x}).outputs
    """

    def __init__(self, *, models: Mapping[str, str | Path] | None = None, config: AgentConfig | None = None) -> None:
        """Start from plain model files, a checked config, or both. Raises ConfigError or ModelLoadError."""
        config = config or AgentConfig()
        self._config = config
        self._files = {
            **config.models,
            **{_model_name(name): ModelSection(path=Path(path)) for name, path in (models or {}).items()},
        }
        self._member: FleetMember | None = None
        self._http: LocalApi | None = None
        self._liveness: Liveness | None = None
        with ExitStack() as opened:
            self._open(opened)
            self._opened = opened.pop_all()

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """An agent from a config file. Raises ConfigError, one line."""
        return cls(config=load_config(Path(path)))

    def _open(self, opened: ExitStack) -> None:
        config = check_config(self._config)
        outbox = self._open_outbox(opened)
        self._recorder = Recorder(
            device=config.device.id if config.device else _STANDALONE_DEVICE,
            window_s=config.telemetry.window_s,
            outbox=outbox,
            data_dir=config.data_dir,
            max_cpu_percent=config.telemetry.max_cpu_percent,
        )
        residency = Residency(budget_bytes=config.runtime.memory_budget_bytes, on_event=self._on_residency)
        self._residency = residency
        opened.callback(residency.close)
        self._path = ServingPath(
            recorder=self._recorder,
            residency=residency,
            boot_id=outbox.boot_id if outbox else None,
            has_to_spare=self._has_to_spare,
        )
        self._models = ModelRoom(
            config=config,
            files=self._files,
            path=self._path,
            residency=residency,
            recorder=self._recorder,
            is_managed=self._is_managed,
        )
        opened.callback(self._models.stop)
        self._models.start()
        self._recorder.start()
        opened.callback(self._recorder.stop)
        if outbox is not None:
            self._join_fleet(outbox, opened)
        if config.http.port is not None or config.http.socket is not None:
            self._open_http(opened)

    def _join_fleet(self, outbox: Outbox, opened: ExitStack) -> None:
        from edge_agent.fleet_member import FleetMember

        self._member = FleetMember(
            config=self._config, outbox=outbox, recorder=self._recorder, path=self._path, models=self._models
        )
        self._member.start()
        opened.callback(self._member.stop)
        # before the farewell: the last window still travels, and none is closed after it
        opened.callback(self._recorder.close_window)
        opened.callback(self._recorder.stop)

    def _open_outbox(self, opened: ExitStack) -> Outbox | None:
        config = self._config
        if config.mqtt is None or config.data_dir is None:
            return None
        from edge_agent.data_folder import DataFolder
        from edge_agent.telemetry.outbox import Outbox

        opened.callback(DataFolder(config.data_dir).close)
        try:
            outbox = Outbox(
                config.data_dir / "outbox.db",
                max_bytes=config.telemetry.outbox_max_bytes,
                max_age_s=config.telemetry.outbox_max_age_s,
                confirmed_by=config.telemetry.confirmed_by,
                confirm_timeout_s=config.telemetry.confirm_timeout_s,
            )
        except OSError as error:
            raise ConfigError(f"data_dir {config.data_dir} cannot be used: {error.strerror or error}") from None
        opened.callback(outbox.close)
        return outbox

    def _open_http(self, opened: ExitStack) -> None:
        from edge_agent.local_api.server import LocalApi

        http = self._config.http
        self._http = LocalApi(
            service=self,
            host=http.host if http.port is not None else None,
            port=http.port,
            socket_path=http.socket,
            max_body_bytes=http.max_body_bytes,
            max_waiting=http.max_waiting,
            shared_memory=http.shared_memory,
        )
        self._http.start()
        opened.callback(self._http.stop)

    def _is_managed(self, name: str) -> bool:
        return self._member is not None and any(report.model == name for report in self._member.reports())

    def _has_to_spare(self) -> bool:
        return self._models.has_to_spare()

    def _on_residency(self, kind: str, name: str, detail: str) -> None:
        _LOG.info("%s %s: %s", name, kind, detail)
        if kind == LOAD_FAILED:
            self._recorder.emit(EventKind.MODEL_LOAD_FAILED, model=name, detail=detail)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Send what can be sent in a moment, keep the rest, end. Safe to call twice."""
        self._opened.close()

    @property
    def http_port(self) -> int | None:
        """The local API's actual TCP port; None when it is off."""
        return self._http.port if self._http else None

    def infer(self, model: str, inputs: Mapping[str, ArrayLike], options: CallOptions = DEFAULT_CALL) -> Prediction:
        """Run `inputs` (name → array of the model's shape) through `model`.

        Raises UnknownModelError, InvalidInputError, InferenceError, OverloadedError or DeadlineExceededError;
        never waits for a network.
        """
        return self._path.infer(model, inputs, options)

    def infer_many(
        self, model: str, items: Sequence[Mapping[str, ArrayLike]], options: CallOptions = DEFAULT_CALL
    ) -> list[Prediction | AgentError]:
        """`infer` for every item, in order, in as few runs as the model allows; a bad item costs itself only."""
        return self._path.infer_many(model, items, options)

    def load_model(self, name: str) -> None:
        """Load a model of the config (again) while the old one goes on answering. Raises AgentError."""
        self._models.load(name)

    def unload_model(self, name: str) -> None:
        """Let nothing answer under `name` until it is loaded again. Raises AgentError."""
        self._models.unload(name)

    def repository(self) -> list[RepositoryEntry]:
        """Every model that answers or could be loaded by name."""
        return self._models.entries()

    def report_outcome(
        self,
        prediction_id: str,
        *,
        label: int | str | None = None,
        value: float | None = None,
        correct: bool | None = None,
    ) -> None:
        """Tell the truth about an earlier prediction, minutes or days later; see `ServingPath.report_outcome`."""
        self._path.report_outcome(prediction_id, label=label, value=value, correct=correct)

    def health(self) -> Health:
        """Ready when a model answers; the models of the config do from the start."""
        if self._path.live.names():
            return Health(ready=True)
        return Health(ready=False, reasons=("no model is loaded yet",))

    def describe_models(self) -> list[ModelDescription]:
        """Every model and arm that answers now, shadows included."""
        reports = self._member.reports() if self._member else []
        phases = {(report.model, report.arm): report.phase.value for report in reports}
        return [
            _describe(serving, phases.get((serving.name, serving.arm), Phase.HEALTHY.value))
            for serving in self._path.live.all()
        ]

    def describe_model(self, name: str) -> ModelDescription:
        """The arm of `name` with the largest weight, without its phase. Raises UnknownModelError."""
        return _describe(self._path.live.get(name).main(), None)

    def statistics(self) -> list[CallStatistics]:
        """What every arm of every model did since this agent started."""
        return [
            CallStatistics(
                name=key.model,
                version=key.version,
                arm=key.arm,
                successes=totals.count,
                failures=totals.failed,
                last_at_ms=totals.last_at_ns // 1_000_000,
                total_ns=round(totals.latency_us * 1000),
                queue_ns=round(totals.queue_us * 1000),
                run_ns=round((totals.latency_us - totals.queue_us) * 1000),
                batches=totals.runs,
            )
            for key, totals in sorted(self._recorder.totals().items())
        ]

    @property
    def windows_closed(self) -> int:
        """Windows put into the outbox since this agent started."""
        return self._recorder.windows_closed

    @property
    def records_waiting(self) -> int:
        """Windows and events that the fleet server does not have yet, as far as this device knows."""
        return self._recorder.outbox_status().depth

    def what_is_stuck(self) -> list[str]:
        """What of this agent is stuck for good, in words; empty when it is alive. For a watchdog: from one thread."""
        if self._liveness is None:
            self._liveness = self._make_liveness()
        return self._liveness.look()

    def _make_liveness(self) -> Liveness:
        from edge_agent.service.liveness import Liveness

        heartbeats = {"telemetry": self._recorder.heartbeat}
        if self._member is not None and self._member.heartbeat is not None:
            heartbeats["updater"] = self._member.heartbeat
        return Liveness(
            lanes=lambda: [serving.lanes for serving in self._path.live.all()],
            heartbeats=heartbeats,
            api=self._http.nearest_address if self._http else None,
            run_limit_s=self._config.runtime.hang_timeout_s,
        )

    def metrics_text(self) -> str:
        """The agent's metrics in Prometheus text format 0.0.4."""
        from edge_agent.metrics import render_metrics

        return render_metrics(
            stats=self._recorder.all_stats(),
            servings=self._path.live.all(),
            residents=self._residency.resident(),
            scaling=self._models.scaling(),
            outbox=self._recorder.outbox_status(),
            broker_connected=self._member.is_connected if self._member else None,
        )


def _describe(serving: Serving, phase: str | None) -> ModelDescription:
    slot = serving.slot
    return ModelDescription(
        name=serving.name,
        version=serving.version,
        variant=serving.variant,
        arm=serving.arm,
        bundle=serving.bundle,
        phase=phase,
        inputs=slot.inputs,
        outputs=slot.outputs,
        labels=serving.labels,
        weight=0.0 if serving.shadow else serving.weight,
        shadow=serving.shadow,
        max_batch=serving.lanes.max_batch if slot.is_batchable else 1,
        memory_bytes=slot.memory_bytes,
    )


def _model_name(name: str) -> str:
    try:
        return check_name("model", name)
    except InvalidName as error:
        raise ConfigError(str(error)) from None
