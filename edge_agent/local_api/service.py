"""What the local API and the serverless handler need of an agent.

The Agent is the implementation; whatever else answers these calls can be served the same way.
Every method may be called from several threads at once and raises only `edge_agent.errors`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

from msgspec import Struct

from edge_agent.errors import AgentError
from edge_agent.prediction import Prediction
from fleet_protocol.manifest import TensorSpec

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


class Health(Struct, frozen=True, kw_only=True):
    """Whether inference calls can be answered, and if not, why."""

    ready: bool
    reasons: tuple[str, ...] = ()


class CallOptions(Struct, frozen=True, kw_only=True):
    """How one call is to be answered.

    `key` always meets the same arm of a model that has several (a user, a session). `version` asks for the arm
    that runs it, whatever the weights. Among waiting calls the higher `priority` (-100 to 100) runs first.
    `timeout_s` is all the time that queue and run may take. With `may_wait` False a call that cannot run at
    once raises WouldWaitError instead of waiting.
    """

    key: str | None = None
    version: str | None = None
    priority: int = 0
    timeout_s: float | None = None
    may_wait: bool = True


DEFAULT_CALL = CallOptions()


class RepositoryState(StrEnum):
    """Whether a model of the repository answers, in the Open Inference Protocol's words."""

    READY = "READY"
    LOADING = "LOADING"
    UNAVAILABLE = "UNAVAILABLE"


class RepositoryEntry(Struct, frozen=True, kw_only=True):
    """One model that this agent serves or could serve. `reason` says why it is not READY, or that it sleeps."""

    name: str
    version: str
    state: RepositoryState
    reason: str = ""


class CallStatistics(Struct, frozen=True, kw_only=True):
    """What one arm of a model did since the agent's start. Durations are sums over its calls, in nanoseconds.

    `batches` counts runs by the number of calls that shared one; `last_at_ms` is the wall clock of the last call in
    milliseconds since 1970, 0 without one.
    """

    name: str
    version: str
    arm: str
    successes: int
    failures: int
    last_at_ms: int
    total_ns: int
    queue_ns: int
    run_ns: int
    batches: Mapping[int, int]


class ModelDescription(Struct, frozen=True, kw_only=True):
    """One loaded model: what answers under `name`, and its signature.

    `phase` is where its update stands; None where nobody asked for that.

    `weight` is the arm's share of the calls without a key, 0 for a shadow. `max_batch` is how many calls may
    share one run, 1 for a model that cannot batch. `memory_bytes` is what loading it took, None when unknown.
    """

    name: str
    version: str
    variant: str
    arm: str
    bundle: str | None
    phase: str | None
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    labels: tuple[str, ...]
    weight: float = 1.0
    shadow: bool = False
    max_batch: int = 1
    memory_bytes: int | None = None


class InferenceService(Protocol):
    """An agent as its callers see it."""

    def infer(self, model: str, inputs: Mapping[str, ArrayLike], options: CallOptions = DEFAULT_CALL) -> Prediction:
        """Run `inputs` by name through `model`.

        Raises UnknownModelError, InvalidInputError, InferenceError, OverloadedError, DeadlineExceededError, and
        WouldWaitError where `options` say so.
        """
        ...

    def infer_many(
        self, model: str, items: Sequence[Mapping[str, ArrayLike]], options: CallOptions = DEFAULT_CALL
    ) -> list[Prediction | AgentError]:
        """`infer` for every item, in order, in as few runs as the model allows; a bad item costs itself only.

        Raises UnknownModelError, OverloadedError and DeadlineExceededError for all of them.
        """
        ...

    def report_outcome(
        self,
        prediction_id: str,
        *,
        label: int | str | None = None,
        value: float | None = None,
        correct: bool | None = None,
    ) -> None:
        """Tell the truth about an earlier prediction. Raises UnknownPredictionError."""
        ...

    def health(self) -> Health:
        """Whether calls can be answered now."""
        ...

    def describe_models(self) -> list[ModelDescription]:
        """Every model and arm that answers, shadows included, sorted by name."""
        ...

    def describe_model(self, name: str) -> ModelDescription:
        """The arm of `name` with the largest weight, without its phase. Raises UnknownModelError."""
        ...

    def repository(self) -> list[RepositoryEntry]:
        """Every model that answers or could be loaded by name, sorted."""
        ...

    def load_model(self, name: str) -> None:
        """Load a model of the config (again): calls go on with the old one until the new one is warm.

        Raises UnknownModelError, ModelLoadError, MemoryBudgetError, and InvalidInputError for a model that the
        fleet manages.
        """
        ...

    def unload_model(self, name: str) -> None:
        """Let nothing answer under `name` until it is loaded again. Raises as `load_model`."""
        ...

    def statistics(self) -> list[CallStatistics]:
        """What every arm of every model did, sorted by name."""
        ...

    def metrics_text(self) -> str:
        """The agent's metrics in Prometheus text format 0.0.4."""
        ...
