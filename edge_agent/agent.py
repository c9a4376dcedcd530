"""The Agent: opens the rooms in order, closes them in reverse, and is the in-process API.

Order: outbox → telemetry → the models of plain files → updates (which put the fleet's models to work) →
the MQTT link → the local API. Inference works from the third step on and never needs the later ones.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from edge_agent.config import AgentConfig, ModelSection, check_config, load_config
from edge_agent.errors import ConfigError
from edge_agent.fleet_member import FleetMember
from edge_agent.local_api.service import Health, ModelDescription
from edge_agent.metrics import render_metrics
from edge_agent.prediction import Prediction
from edge_agent.runtime.live_models import Serving
from edge_agent.runtime.session import Model
from edge_agent.serving import ServingPath
from edge_agent.telemetry.outbox import Outbox
from edge_agent.telemetry.recorder import Recorder
from fleet_protocol.errors import InvalidName
from fleet_protocol.names import check_name

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from edge_agent.local_api.server import LocalApi

_LOG = logging.getLogger(__name__)
_STANDALONE_DEVICE = "standalone"
_FILE_VARIANT = "file"


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
        )
        self._path = ServingPath(recorder=self._recorder, boot_id=outbox.boot_id if outbox else None)
        for name, section in self._files.items():
            self._serve_file(name, section)
        self._recorder.start()
        opened.callback(self._recorder.stop)
        if outbox is not None:
            self._member = FleetMember(config=config, outbox=outbox, recorder=self._recorder, path=self._path)
            self._member.start()
            opened.callback(self._member.stop)
            # before the farewell: the last window still travels, and none is closed after it
            opened.callback(self._recorder.close_window)
            opened.callback(self._recorder.stop)
        if config.http.port is not None or config.http.socket is not None:
            self._open_http(opened)

    def _open_outbox(self, opened: ExitStack) -> Outbox | None:
        config = self._config
        if config.mqtt is None or config.data_dir is None:
            return None
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
        )
        self._http.start()
        opened.callback(self._http.stop)

    def _serve_file(self, name: str, section: ModelSection) -> None:
        model = Model.load(section.path, threads=self._config.runtime.threads or 1)
        model.warm()
        self._path.put_to_work(
            Serving(
                name=name,
                version=section.version,
                variant=_FILE_VARIANT,
                arm="main",
                bundle=None,
                model=model,
                labels=tuple(section.labels),
                task=section.task or ("classification" if section.labels else ""),
            ),
            None,
        )

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

    def infer(self, model: str, inputs: Mapping[str, ArrayLike]) -> Prediction:
        """Run `inputs` (name → array of the model's shape) through `model`.

        Raises UnknownModelError, InvalidInputError or InferenceError; never waits for a network.
        """
        return self._path.infer(model, inputs)

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
        """Every model that answers now."""
        phases = {report.model: report.phase.value for report in self._member.reports()} if self._member else {}
        return [
            ModelDescription(
                name=serving.name,
                version=serving.version,
                variant=serving.variant,
                arm=serving.arm,
                bundle=serving.bundle,
                phase=phases.get(serving.name, "HEALTHY"),
                inputs=serving.model.inputs,
                outputs=serving.model.outputs,
                labels=serving.labels,
            )
            for serving in self._path.live.all()
        ]

    @property
    def windows_closed(self) -> int:
        """Windows put into the outbox since this agent started."""
        return self._recorder.windows_closed

    @property
    def records_waiting(self) -> int:
        """Windows and events that the fleet server does not have yet, as far as this device knows."""
        return self._recorder.outbox_status().depth

    def metrics_text(self) -> str:
        """The agent's metrics in Prometheus text format 0.0.4."""
        return render_metrics(
            stats=self._recorder.all_stats(),
            outbox=self._recorder.outbox_status(),
            broker_connected=self._member.is_connected if self._member else None,
        )


def _model_name(name: str) -> str:
    try:
        return check_name("model", name)
    except InvalidName as error:
        raise ConfigError(str(error)) from None
