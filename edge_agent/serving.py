"""The serving path: from a call's inputs to a prediction, with what happened recorded on the way.

Shared by every front (in-process, HTTP, serverless, batch). Nothing here waits for the network or a disk.
"""

from __future__ import annotations

import itertools
import math
import secrets
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from edge_agent.control.installation import WarmModel
from edge_agent.errors import AgentError, InvalidInputError
from edge_agent.prediction import Prediction, winning_class
from edge_agent.runtime.live_models import LiveModels, Serving
from edge_agent.telemetry.prediction_ids import PredictionId, decode_prediction_id, encode_prediction_id
from edge_agent.telemetry.recorder import Recorder
from edge_agent.telemetry.series import Sample, Series, SeriesKey, ServingStats
from fleet_protocol.manifest import Manifest

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray


class ServingPath:
    """The live models and the recorder that listens to them."""

    def __init__(self, *, recorder: Recorder, boot_id: str | None) -> None:
        self.live = LiveModels()
        self._recorder = recorder
        self._series: dict[SeriesKey, Series] = {}
        self._boot_id = boot_id or f"00000000-{secrets.token_hex(4)}"
        self._numbers = itertools.count(1)

    def put_to_work(self, serving: Serving, manifest: Manifest | None) -> None:
        """Let a loaded model answer from now on. Calls in progress end on what they began with."""
        key = key_of(serving)
        self._series = {**self._series, key: self._recorder.serve(key, manifest)}
        self.live.swap(serving)
        self._follow_live()

    def take_from_work(self, name: str) -> None:
        """Let nothing answer under `name`."""
        self.live.remove(name)
        self._follow_live()

    def _follow_live(self) -> None:
        self._recorder.set_serving(frozenset(key_of(serving) for serving in self.live.all()))

    def stats(self, name: str) -> ServingStats | None:
        """What the model that answers under `name` now did since this process started."""
        serving = next((entry for entry in self.live.all() if entry.name == name), None)
        return self._recorder.stats(key_of(serving)) if serving else None

    def infer(self, model: str, inputs: Mapping[str, ArrayLike]) -> Prediction:
        """Run one inference. Raises UnknownModelError, InvalidInputError or InferenceError."""
        serving = self.live.get(model)
        series = self._series[key_of(serving)]
        start_ns = time.perf_counter_ns()
        try:
            arrays = serving.model.prepare(inputs)
            outputs = serving.model.run(arrays)
        except InvalidInputError:
            self._recorder.record_error(series, "invalid_input")
            raise
        except AgentError:
            self._recorder.record_error(series, "inference")
            raise
        latency_us = (time.perf_counter_ns() - start_ns) / 1000
        class_index: int | None = None
        label: str | None = None
        classes: tuple[int, ...] = ()
        scores: tuple[float, ...] = ()
        if serving.task == "classification":
            probabilities = next(iter(outputs.values()))
            class_index, label = winning_class(probabilities, serving.labels)
            classes, scores = _winners(probabilities, class_index)
        self._recorder.record(series, arrays, Sample(latency_us, classes, scores))
        return Prediction(
            outputs=outputs,
            model=serving.name,
            version=serving.version,
            variant=serving.variant,
            arm=serving.arm,
            latency_us=latency_us,
            label=label,
            class_index=class_index,
            make_id=self._id_maker(serving, class_index, label, outputs),
        )

    def _id_maker(
        self, serving: Serving, class_index: int | None, label: str | None, outputs: Mapping[str, NDArray[np.generic]]
    ) -> Callable[[], str]:
        number = next(self._numbers)

        def make_id() -> str:
            return encode_prediction_id(
                boot_id=self._boot_id,
                number=number,
                model=serving.name,
                version=serving.version,
                variant=serving.variant,
                arm=serving.arm,
                predicted_class=class_index,
                predicted_label=label,
                predicted_value=_single_value(outputs) if serving.task == "regression" else None,
            )

        return make_id

    def report_outcome(
        self,
        prediction_id: str,
        *,
        label: int | str | None = None,
        value: float | None = None,
        correct: bool | None = None,
    ) -> None:
        """Credit a truth to the version and arm that made the prediction; a repeated report counts once.

        Exactly one of `label` (class index or name), `value` (regression) and `correct` is given.
        Raises UnknownPredictionError for a foreign id and InvalidInputError for a truth that does not fit it.
        """
        made = decode_prediction_id(prediction_id)
        squared_error = None
        if [label, value, correct].count(None) != 2:
            raise InvalidInputError("an outcome needs exactly one of label, value and correct")
        if label is not None:
            correct = _is_correct(made, label)
        elif value is not None:
            if made.predicted_value is None:
                raise InvalidInputError(
                    f"this prediction of {made.model} has no single value: report `correct` instead"
                )
            error = value - made.predicted_value
            squared_error = error * error  # not a power: that raises where the product is infinite
            if not math.isfinite(squared_error):
                raise InvalidInputError(
                    f"value {value} against the predicted {made.predicted_value} gives no finite error: "
                    "report `correct` instead"
                )
        self._recorder.record_outcome(made, correct=correct, squared_error=squared_error)


def key_of(serving: Serving) -> SeriesKey:
    """The telemetry series of what serves."""
    return SeriesKey(serving.name, serving.version, serving.variant, serving.arm)


def serving_of(warm: WarmModel, *, name: str, bundle: str, arm: str) -> Serving:
    """What serves when a bundle's warm model is put to work under `name`."""
    return Serving(
        name=name,
        version=warm.manifest.version,
        variant=warm.variant.name,
        arm=arm,
        bundle=bundle,
        model=warm.model,
        labels=tuple(warm.manifest.labels),
        task=warm.manifest.task,
    )


def _winners(probabilities: NDArray[np.generic], class_index: int | None) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """The winning class and its score for every row; one row takes the short way."""
    if class_index is not None:
        return (class_index,), (float(probabilities.flat[class_index]),)
    if probabilities.ndim != 2 or probabilities.shape[1] < 2 or probabilities.dtype.kind not in "iuf":
        return (), ()
    winners = probabilities.argmax(axis=1)
    scores = np.take_along_axis(probabilities, winners[:, None], axis=1)[:, 0]
    return tuple(winners.tolist()), tuple(scores.astype(np.float64).tolist())


def _is_correct(made: PredictionId, label: int | str) -> bool:
    if made.predicted_class is None:
        raise InvalidInputError(f"this prediction of {made.model} has no class: report `value` or `correct` instead")
    if isinstance(label, str):
        if made.predicted_label is None:
            raise InvalidInputError(f"{made.model} has no class names: report the class index")
        return label == made.predicted_label
    return label == made.predicted_class


def _single_value(outputs: Mapping[str, NDArray[np.generic]]) -> float | None:
    first = next(iter(outputs.values()))
    return float(first.flat[0]) if first.size == 1 and first.dtype.kind in "iuf" else None
