"""What the local API, the serverless handler and batch scoring need of an agent.

The Agent is the implementation; whatever else answers these five calls can be served the same way.
Every method may be called from several threads at once and raises only `edge_agent.errors`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from edge_agent.prediction import Prediction
from fleet_protocol.manifest import TensorSpec

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


@dataclass(frozen=True, kw_only=True, slots=True)
class Health:
    """Whether inference calls can be answered, and if not, why."""

    ready: bool
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelDescription:
    """One loaded model: what answers under `name`, and its signature. `phase` is where its update stands."""

    name: str
    version: str
    variant: str
    arm: str
    bundle: str | None
    phase: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    labels: tuple[str, ...]


class InferenceService(Protocol):
    """An agent as its callers see it."""

    def infer(self, model: str, inputs: Mapping[str, ArrayLike]) -> Prediction:
        """Run `inputs` by name through `model`. Raises UnknownModelError, InvalidInputError, InferenceError."""
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
        """Every loaded model."""
        ...

    def metrics_text(self) -> str:
        """The agent's metrics in Prometheus text format 0.0.4."""
        ...
