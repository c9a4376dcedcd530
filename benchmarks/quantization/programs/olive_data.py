"""What Olive's configuration names: the parts as data sets, and the metric. Olive loads this file as a user script."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from olive.data.registry import Registry
from task import Task, judged, session_of


class Part:
    """Pairs of inputs by name, without a batch axis, and the truth."""

    def __init__(self, part):
        inputs, self.labels = _task().part(part)
        self.inputs = inputs

    def __len__(self):
        return len(next(iter(self.inputs.values())))

    def __getitem__(self, place):
        return {name: array[place] for name, array in self.inputs.items()}, (
            0 if self.labels is None else self.labels[place]
        )


@Registry.register_dataset()
def part_of_case(part, **_):
    """One part of the case."""
    return Part(part)


def quality_of(model, device=None, execution_providers=None, **_):
    """The metric of a candidate on the selection part."""
    task = _task()
    inputs, labels = task.part("selection")
    return {"quality": judged(session_of(str(model.model_path)), task.metric, inputs, labels)[0]}


def _task():
    return Task(os.environ["EDGEFLEET_BENCH_CASE"])
