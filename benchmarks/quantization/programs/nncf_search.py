"""NNCF's quantization with accuracy control, as its documentation has it for ONNX: defaults, and a relative drop.

    python nncf_search.py FOLDER OUT.onnx

The batch of one stands first in every item, as NNCF asks for. The wall time is from the model's file to the result's.
"""

import sys
import time

import nncf
import onnx
from judging import by_sample
from task import Task, judged, session_of, tell


def main(folder, out):
    """Search, write the result, tell the time."""
    task = Task(folder)
    started = time.perf_counter()
    model = onnx.load(task.model)
    calibration, _ = task.part("calibration")
    selection, labels = task.part("selection")

    def validate(candidate, items):
        places = [place for place, _ in items]
        session = session_of(candidate.SerializeToString())
        truth = None if labels is None else labels[places]
        part = {name: array[places] for name, array in selection.items()}
        value, outputs = judged(session, task.metric, part, truth)
        return value, by_sample(task.metric, outputs, next(iter(part.values())), truth).tolist()

    count = len(next(iter(selection.values())))
    quantized = nncf.quantize_with_accuracy_control(
        model,
        calibration_dataset=nncf.Dataset(list(_rows(calibration))),
        validation_dataset=nncf.Dataset([(place, None) for place in range(count)]),
        validation_fn=validate,
        max_drop=task.max_drop,
        drop_type=nncf.DropType.RELATIVE,
    )
    onnx.save(quantized, out)
    tell(took_s=time.perf_counter() - started, configuration="quantize_with_accuracy_control, defaults, relative drop")


def _rows(inputs):
    count = len(next(iter(inputs.values())))
    return ({name: array[place : place + 1] for name, array in inputs.items()} for place in range(count))


if __name__ == "__main__":
    main(*sys.argv[1:])
