"""The serving path: from a call's inputs to a prediction, with what happened recorded on the way.

Shared by every front (in-process, HTTP, serverless). Nothing here waits for the network or a disk; a
call waits only for a lane, and for a model that sleeps. The usual call (one arm, no options, a free lane)
costs microseconds beside the model's own run: whatever is added to `infer` is measured by benchmark R1.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from edge_agent.errors import (
    AgentError,
    DeadlineExceededError,
    InferenceError,
    InvalidInputError,
    OverloadedError,
    UnknownModelError,
    WouldWaitError,
)
from edge_agent.local_api.service import DEFAULT_CALL, CallOptions
from edge_agent.prediction import Prediction, class_scores, winning_class
from edge_agent.runtime.arms import choose_arm
from edge_agent.runtime.batching import Likeness, concatenate, likeness_of, split
from edge_agent.runtime.comparison import Comparison
from edge_agent.runtime.lanes import Lanes
from edge_agent.runtime.live_models import LiveModels, Route, Serving
from edge_agent.runtime.residency import ModelSlot, Residency
from edge_agent.runtime.shadow import ShadowRunner
from edge_agent.runtime.watched_lanes import WatchedLanes
from edge_agent.telemetry.outcomes import truth_of
from edge_agent.telemetry.prediction_ids import decode_prediction_id, encode_prediction_id
from edge_agent.telemetry.recorder import Recorder
from edge_agent.telemetry.series import ServingStats

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from edge_agent.runtime.session import Model

Arrays = Mapping[str, NDArray[Any]]
_NO_CLASSES: tuple[tuple[int, ...], tuple[float, ...]] = ((), ())


class ServingPath:
    """The live models and the recorder that listens to them."""

    def __init__(
        self,
        *,
        recorder: Recorder,
        residency: Residency,
        boot_id: str | None,
        has_to_spare: Callable[[], bool] = lambda: True,
    ) -> None:
        self.live = LiveModels()
        self._recorder, self._residency, self._has_to_spare = recorder, residency, has_to_spare
        self._boot_id = boot_id or f"00000000-{os.urandom(4).hex()}"
        self._numbers = itertools.count(1)
        self._name = self._name_prediction  # bound once, not for every call
        self._shadows: dict[str, ShadowRunner] = {}  # by model name

    def put_to_work(self, serving: Serving, *, compare: bool = False) -> None:
        """Let a warm model answer from now on. Calls in progress end on what they began with, then it is let go.

        With `compare`, what answered before runs beside it on the same inputs, if it is in memory, until
        `end_trial` or the next exchange.
        """
        incumbent = self.live.find(serving.name, serving.arm) if compare and not serving.shadow else None
        if incumbent is not None and incumbent.slot.model is not None and not incumbent.shadow:
            serving = replace(serving, comparison=self._comparison(incumbent.slot, serving.task))
        before = self.live.swap(serving)
        self._follow_live()
        if before is not None:
            self._retire(before, keeps_slot=serving.comparison is not None)
        if serving.shadow:
            self._shadows[serving.name] = self._shadow_runner(serving)

    def take_from_work(self, name: str, arm: str) -> None:
        """Let nothing answer as this arm; taking away what is not there is a normal return."""
        before = self.live.remove(name, arm)
        self._follow_live()
        if before is not None:
            self._retire(before)

    def end_trial(self, name: str, arm: str, lanes: Lanes) -> None:
        """What answers as this arm has proven itself: it goes on in plain `lanes`, compared with nothing."""
        serving = self.live.find(name, arm)
        if serving is None or not isinstance(serving.lanes, WatchedLanes):
            return
        self.live.swap(replace(serving, lanes=lanes, comparison=None))
        serving.lanes.release()
        self._end_comparison(serving)

    def oldest_run_s(self, name: str, arm: str) -> float:
        """For how long what serves on trial as this arm has been at its longest run in progress; 0 without one."""
        serving = self.live.find(name, arm)
        if serving is None:
            return 0.0
        if serving.shadow:
            runner = self._shadows.get(name)
            return runner.oldest_run_s if runner is not None else 0.0
        return serving.lanes.oldest_run_s if isinstance(serving.lanes, WatchedLanes) else 0.0

    def stop(self) -> None:
        """Take no more calls of what serves; those under way are answered."""
        for serving in self.live.all():
            self.take_from_work(serving.name, serving.arm)

    def _retire(self, serving: Serving, *, keeps_slot: bool = False) -> None:
        if serving.shadow and (runner := self._shadows.pop(serving.name, None)) is not None:
            if serving.slot.model is not None:
                serving.slot.model.cancel_runs()  # nobody waits for a shadow
            runner.stop()
        serving.lanes.close()
        if not keeps_slot:
            self._residency.remove(serving.slot)
        self._end_comparison(serving)

    def _comparison(self, incumbent: ModelSlot, task: str) -> Comparison:
        return Comparison(incumbent=incumbent, task=task, is_idle=lambda: self.is_idle, may_run=self._has_to_spare)

    def _end_comparison(self, serving: Serving) -> None:
        if serving.comparison is not None:
            serving.comparison.stop()
            self._residency.remove(serving.comparison.incumbent)

    def _shadow_runner(self, serving: Serving) -> ShadowRunner:
        slot, series = serving.slot, serving.series

        def run(inputs: Arrays) -> Arrays:
            return (slot.model or self._residency.bring_back(slot)).run(inputs)

        return ShadowRunner(
            run=run,
            task=serving.task,
            is_idle=lambda: self.is_idle,
            may_run=self._has_to_spare,
            on_compared=lambda disagreed: self._recorder.record_shadow(series, disagreed=disagreed),
            on_error=lambda kind: self._recorder.record_error(series, kind),
        )

    @property
    def is_idle(self) -> bool:
        """Whether no call of any model runs or waits."""
        return all(serving.lanes.is_idle for serving in self.live.all())

    def _follow_live(self) -> None:
        self._recorder.set_serving(frozenset(serving.series.key for serving in self.live.all()))

    def stats(self, name: str, arm: str) -> ServingStats | None:
        """What answers as this arm now did since this process started."""
        serving = self.live.find(name, arm)
        return self._recorder.stats(serving.series.key) if serving else None

    def infer(self, model: str, inputs: Mapping[str, ArrayLike], options: CallOptions = DEFAULT_CALL) -> Prediction:
        """Run one inference; see `InferenceService.infer`."""
        start_ns = time.perf_counter_ns()
        route = self.live.get(model)
        serving = route.only
        if serving is None or options.version is not None:
            serving = _choose(route, options)
        slot, lanes = serving.slot, serving.lanes
        try:
            loaded = slot.model or self._woken(slot, options)
            arrays = loaded.prepare(inputs)
            if options.timeout_s is None and lanes.try_enter():
                try:
                    outputs = loaded.execute(arrays)
                finally:
                    lanes.leave()
                queue_us, shared_by = 0.0, 1
            else:
                outputs, queue_us, shared_by = lanes.run(
                    loaded,
                    arrays,
                    priority=options.priority,
                    deadline_ns=_deadline_ns(start_ns, options),
                    may_wait=options.may_wait,
                )
        except AgentError as error:
            if isinstance(error, UnknownModelError) and self.live.find(model, serving.arm) is not serving:
                return self.infer(model, inputs, options)  # it slept, and was exchanged before it woke
            if isinstance(error, InferenceError) and self._was_taken_back(model, serving):
                self._recorder.record_error(serving.series, _kind_of(error))
                return self.infer(model, inputs, options)
            self._recorder.record_error(serving.series, _kind_of(error))
            raise
        end_ns = time.perf_counter_ns()
        slot.uses += 1
        slot.last_used_ns = end_ns
        return self._answered(route, serving, arrays, outputs, ((end_ns - start_ns) / 1000, queue_us, shared_by))

    def _was_taken_back(self, model: str, serving: Serving) -> bool:
        """Whether another model answers now where this one failed."""
        now = self.live.find(model, serving.arm)
        return serving.lanes.is_closed and now is not None and now is not serving

    def _woken(self, slot: ModelSlot, options: CallOptions) -> Model:
        if not options.may_wait:
            raise WouldWaitError
        return self._residency.bring_back(slot, timeout_s=options.timeout_s)

    def _answered(
        self,
        route: Route,
        serving: Serving,
        arrays: Arrays,
        outputs: dict[str, NDArray[Any]],
        timing: tuple[float, float, int],
    ) -> Prediction:
        """Record an answered call and make its prediction.

        `timing` is what the call took and how long it waited, in microseconds, and how many calls shared its run.
        """
        class_index: int | None = None
        label: str | None = None
        classes, scores = _NO_CLASSES
        if serving.task == "classification":
            probabilities = class_scores(outputs)
            class_index, label = winning_class(probabilities, serving.labels)
            classes, scores = _winners(probabilities, class_index)
        series = serving.series
        series.samples.append((*timing, classes, scores))
        if series.has_features and series.sampler.takes():
            self._recorder.sample_inputs(series, arrays, outputs)
        if route.shadow is not None:
            runner = self._shadows.get(serving.name)
            if runner is not None:
                runner.offer(arrays, outputs)
        if serving.comparison is not None:
            serving.comparison.offer(arrays, outputs)
        return Prediction(outputs, series.key, timing[0], label, class_index, next(self._numbers), self._name)

    def infer_many(
        self, model: str, items: Sequence[Mapping[str, ArrayLike]], options: CallOptions = DEFAULT_CALL
    ) -> list[Prediction | AgentError]:
        """Run every item, as one run where the model can; see `InferenceService.infer_many`."""
        route = self.live.get(model)
        loaded = route.only.slot.model if route.only is not None else None
        if route.only is None or loaded is None or not loaded.is_batchable or options.version is not None:
            return [self._one_of_many(model, item, options) for item in items]
        answers: dict[int, Prediction | AgentError] = {}
        alike: dict[Likeness, list[tuple[int, Arrays]]] = {}
        for index, item in enumerate(items):
            try:
                arrays = loaded.prepare(item)
            except InvalidInputError as error:
                self._recorder.record_error(route.only.series, _kind_of(error))
                answers[index] = error
            else:
                likeness, _ = likeness_of(arrays)
                if likeness is not None:
                    alike.setdefault(likeness, []).append((index, arrays))
        size = route.only.lanes.max_batch
        for group in alike.values():
            for start in range(0, len(group), size):
                indexes, together = zip(*group[start : start + size], strict=True)
                answers.update(zip(indexes, self._run_together(route, loaded, together, options), strict=False))
        return [
            answers[index] if index in answers else self._one_of_many(model, item, options)
            for index, item in enumerate(items)
        ]

    def _run_together(
        self, route: Route, loaded: Model, together: Sequence[Arrays], options: CallOptions
    ) -> list[Prediction]:
        """The predictions for alike items by one run; none when it fails: each is then to be tried alone."""
        serving = route.arms[0]
        start_ns = time.perf_counter_ns()
        try:
            outputs, queue_us, _ = serving.lanes.run(
                loaded,
                concatenate(together),
                priority=options.priority,
                deadline_ns=_deadline_ns(start_ns, options),
                may_wait=options.may_wait,
            )
        except InferenceError:
            return []
        except AgentError as error:
            self._recorder.record_error(serving.series, _kind_of(error))
            raise
        end_ns = time.perf_counter_ns()
        serving.slot.uses += len(together)
        serving.slot.last_used_ns = end_ns
        timing = ((end_ns - start_ns) / 1000, queue_us, len(together))
        parts = split(outputs, [len(next(iter(arrays.values()))) for arrays in together])
        return [
            self._answered(route, serving, arrays, part, timing) for arrays, part in zip(together, parts, strict=True)
        ]

    def _one_of_many(self, model: str, item: Mapping[str, ArrayLike], options: CallOptions) -> Prediction | AgentError:
        try:
            return self.infer(model, item, options)
        except (UnknownModelError, OverloadedError, DeadlineExceededError):
            raise
        except AgentError as error:
            return error

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
        right, squared_error = truth_of(made, label=label, value=value, correct=correct)
        self._recorder.record_outcome(made, correct=right, squared_error=squared_error)

    def _name_prediction(self, prediction: Prediction) -> str:
        return encode_prediction_id(
            boot_id=self._boot_id,
            number=prediction.number,
            model=prediction.model,
            version=prediction.version,
            variant=prediction.variant,
            arm=prediction.arm,
            predicted_class=prediction.class_index,
            predicted_label=prediction.label,
            predicted_value=_single_value(prediction.outputs) if prediction.class_index is None else None,
        )


def _choose(route: Route, options: CallOptions) -> Serving:
    """The arm that answers a call: that of the asked version, else by key and weights."""
    if options.version is None:
        return route.only or route.arms[choose_arm(route.choices, options.key, salt=route.arms[0].name)]
    for serving in route.arms:
        if serving.version == options.version:
            return serving
    name, versions = route.arms[0].name, ", ".join(serving.version for serving in route.arms)
    raise UnknownModelError(f"no version {options.version[:80]!r} of {name} is loaded here: loaded is {versions}")


def _deadline_ns(start_ns: int, options: CallOptions) -> int | None:
    return None if options.timeout_s is None else start_ns + int(options.timeout_s * 1e9)


def _kind_of(error: AgentError) -> str:
    """The name under which telemetry counts a failed call."""
    if isinstance(error, InvalidInputError):
        return "invalid_input"
    if isinstance(error, OverloadedError):
        return "overloaded"
    return "deadline" if isinstance(error, DeadlineExceededError) else "inference"


def _winners(probabilities: NDArray[np.generic], class_index: int | None) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """The winning class and its score for every row; one row takes the short way."""
    if class_index is not None:
        return (class_index,), (float(probabilities.flat[class_index]),)
    if probabilities.ndim != 2 or probabilities.shape[1] < 2 or probabilities.dtype.kind not in "iuf":
        return _NO_CLASSES
    winners = probabilities.argmax(axis=1)
    scores = np.take_along_axis(probabilities, winners[:, None], axis=1)[:, 0]
    return tuple(winners.tolist()), tuple(scores.astype(np.float64).tolist())


def _single_value(outputs: Mapping[str, NDArray[np.generic]]) -> float | None:
    first = next(iter(outputs.values()))
    return float(first.flat[0]) if first.size == 1 and first.dtype.kind in "iuf" else None
