"""Which requests the connections' thread answers by itself: those that are known to be quick.

A request that takes 0.1 ms does not gain from another thread, it pays for the way there and back. One that
takes 10 ms would keep every other connection waiting. Which is which is measured, never guessed. A kind of
request is its method, its path and the size class of its body. Invariants:

1. An unknown kind goes to the workers; SAMPLES_NEEDED good answers of theirs make it known.
2. A kind stays inline while the mean and the worst of its recent costs are within MAX_COST_S, and within
   MAX_CROWDED_COST_S while others are to be answered too: what is longer gains from more than one core. The cost is
   the processor time of the answering thread, which neither other processes nor waiting for the interpreter change.
3. What takes longer than MAX_CLOCK_S in the mean all the same has waited for something: the kind goes to the
   workers at once, for PENALTY_S, and each time it does so again soon for twice as long, up to MAX_PENALTY_S. The
   mean gives the last answer one eighth, so one that is eight times too late is enough.
4. An inline call never waits and changes nothing if it would have to: it asks the service with `may_wait` off.
   Only requests that are one call are asked so: what comes after the first call could not be taken back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NoReturn

from msgspec.structs import replace

from edge_agent.errors import AgentError, WouldWaitError
from edge_agent.local_api.routes import Request
from edge_agent.local_api.service import (
    DEFAULT_CALL,
    CallOptions,
    CallStatistics,
    Health,
    InferenceService,
    ModelDescription,
    RepositoryEntry,
)
from edge_agent.prediction import Prediction

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

MAX_COST_S = 0.001
MAX_CROWDED_COST_S = 0.000_3
MAX_CLOCK_S = 0.004
"""By the clock on the wall, in which a busy machine's other work counts too: it must not look like waiting."""
MAX_BODY_BYTES = 64 * 1024
SAMPLES_NEEDED = 3
PENALTY_S = 1.0
MAX_PENALTY_S = 60.0
MAX_KINDS = 256
_MAX_PATH_CHARS = 200
_SMOOTHING = 1 / 8
_FADING = 0.9
"""The worst cost counts for about as many answers as it takes to fade: a four times too high one for 14."""

# one request of these is many calls
_NEVER = frozenset({"/batch"})

_DEFAULT_AT_ONCE = CallOptions(may_wait=False)


class Kind:
    """What is known of one kind of request. Learned and asked on the loop's thread."""

    __slots__ = ("_clock_s", "_cost_s", "_penalty_s", "_samples", "_until", "_worst_s")

    def __init__(self) -> None:
        self._samples = 0
        self._cost_s = 0.0
        self._worst_s = 0.0
        self._clock_s = 0.0
        self._until = -MAX_PENALTY_S
        self._penalty_s = PENALTY_S

    def is_quick(self, now: float, *, is_alone: bool) -> bool:
        """Whether to answer the next one inline; `is_alone` when nothing else is to be answered."""
        most_s = MAX_COST_S if is_alone else MAX_CROWDED_COST_S
        return self._samples >= SAMPLES_NEEDED and self._worst_s <= most_s and now >= self._until

    def learn(self, cost_s: float) -> None:
        """A good answer took this much processor time."""
        self._samples += 1
        self._cost_s += (cost_s - self._cost_s) * (_SMOOTHING if self._samples > SAMPLES_NEEDED else 1 / self._samples)
        # the mean is never above the worst, so one comparison sees both
        self._worst_s = max(cost_s, self._cost_s, self._worst_s * _FADING)

    def clocked(self, clock_s: float, now: float) -> None:
        """An inline answer took this long on the clock."""
        self._clock_s += (clock_s - self._clock_s) * _SMOOTHING
        if self._clock_s > MAX_CLOCK_S:
            again = now - self._until < MAX_PENALTY_S
            self._penalty_s = min(MAX_PENALTY_S, 2 * self._penalty_s) if again else PENALTY_S
            self._until = now + self._penalty_s
            self._clock_s = 0.0


class Kinds:
    """The kinds that were seen, the most recent MAX_KINDS of them."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str, int], Kind] = {}

    def find(self, request: Request) -> Kind | None:
        """What is known of this kind of request, None without."""
        if "content-encoding" in request.headers:
            return None
        return self._known.get((request.method, request.path, len(request.body).bit_length()))

    def learn(self, request: Request, cost_s: float) -> None:
        """A good answer took this much processor time. Only good answers make a kind known, so nobody can fill this."""
        size_bytes = len(request.body)
        if size_bytes > MAX_BODY_BYTES or len(request.path) > _MAX_PATH_CHARS or request.path in _NEVER:
            return
        if "content-encoding" in request.headers:
            return  # what a few compressed bytes become may be of any size
        key = (request.method, request.path, size_bytes.bit_length())
        kind = self._known.get(key)
        if kind is None:
            if len(self._known) >= MAX_KINDS:
                del self._known[next(iter(self._known))]
            kind = self._known[key] = Kind()
        kind.learn(cost_s)


class AtOnce:
    """A service as an inline answer may use it: the same, but what would wait raises WouldWaitError."""

    __slots__ = ("_service",)

    def __init__(self, service: InferenceService) -> None:
        self._service = service

    def infer(self, model: str, inputs: Mapping[str, ArrayLike], options: CallOptions = DEFAULT_CALL) -> Prediction:
        """As the service's, with `may_wait` off."""
        return self._service.infer(model, inputs, _at_once(options))

    def infer_many(
        self, model: str, items: Sequence[Mapping[str, ArrayLike]], options: CallOptions = DEFAULT_CALL
    ) -> list[Prediction | AgentError]:
        """As the service's, with `may_wait` off."""
        return self._service.infer_many(model, items, _at_once(options))

    def report_outcome(
        self,
        prediction_id: str,
        *,
        label: int | str | None = None,
        value: float | None = None,
        correct: bool | None = None,
    ) -> None:
        """As the service's."""
        self._service.report_outcome(prediction_id, label=label, value=value, correct=correct)

    def health(self) -> Health:
        """As the service's."""
        return self._service.health()

    def describe_models(self) -> list[ModelDescription]:
        """As the service's."""
        return self._service.describe_models()

    def describe_model(self, name: str) -> ModelDescription:
        """As the service's."""
        return self._service.describe_model(name)

    def repository(self) -> list[RepositoryEntry]:
        """As the service's."""
        return self._service.repository()

    def load_model(self, name: str) -> NoReturn:
        """Loading always takes its time."""
        raise WouldWaitError(name)

    def unload_model(self, name: str) -> NoReturn:
        """Unloading waits for the calls under way."""
        raise WouldWaitError(name)

    def statistics(self) -> list[CallStatistics]:
        """As the service's."""
        return self._service.statistics()

    def metrics_text(self) -> str:
        """As the service's."""
        return self._service.metrics_text()


def _at_once(options: CallOptions) -> CallOptions:
    return _DEFAULT_AT_ONCE if options is DEFAULT_CALL else replace(options, may_wait=False)
