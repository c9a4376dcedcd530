"""The incumbent beside a candidate that answers: the same inputs, in idle time, and how often the answers differ.

It is the shadow the other way round (`shadow`): the candidate answers, the incumbent runs on what was sampled. It may
not put anything to sleep, and ends when somebody else needs its memory (`is_over`). What it finds stays on the
device: probation asks for it.
"""

from __future__ import annotations

from collections.abc import Callable

from edge_agent.errors import MemoryBudgetError
from edge_agent.runtime.model_slot import ModelSlot
from edge_agent.runtime.shadow import ShadowRunner, Tensors


class Comparison:
    """One candidate's answers against those of `incumbent`, which must be in memory. `task` is the candidate's."""

    def __init__(
        self, *, incumbent: ModelSlot, task: str, is_idle: Callable[[], bool], may_run: Callable[[], bool]
    ) -> None:
        self.incumbent = incumbent
        self.compared = 0
        self.disagreed = 0
        incumbent.must_answer = False  # the first to go when memory is short
        self._runner = ShadowRunner(
            run=self._run,
            task=task,
            is_idle=is_idle,
            may_run=may_run,
            on_compared=self._count,
            on_error=lambda _kind: None,
        )

    @property
    def is_over(self) -> bool:
        """Whether the incumbent is no longer in memory."""
        return self.incumbent.model is None

    def offer(self, inputs: Tensors, outputs: Tensors) -> None:
        """The candidate answered `inputs` with `outputs`. Never waits."""
        if self.incumbent.model is not None:
            self._runner.offer(inputs, outputs)

    def stop(self) -> None:
        """End; what waits is let go."""
        self._runner.stop()

    def _run(self, inputs: Tensors) -> Tensors:
        model = self.incumbent.model
        if model is None:
            raise MemoryBudgetError("the incumbent was put to sleep")
        return model.run(inputs)

    def _count(self, disagreed: bool) -> None:
        self.compared += 1
        self.disagreed += disagreed
