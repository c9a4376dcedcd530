"""What a peer's program is given: a folder with `model.onnx`, `settings.json` and an npz for each part."""

import json
from pathlib import Path

import numpy as np
import onnxruntime as ort
from judging import quality


class Task:
    """The model's file, its settings, and the two parts that a quantizer may see."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.model = self.folder / "model.onnx"
        settings = json.loads((self.folder / "settings.json").read_text())
        self.metric, self.max_drop = settings["metric"], settings["max_drop"]

    def part(self, name):
        """The inputs by name, and the truth or None."""
        with np.load(self.folder / f"{name}.npz", allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in archive.files}
        labels = arrays.pop("labels", None)
        return arrays, labels


def session_of(model):
    """A session on one thread of a path or of bytes."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def judged(session, metric, inputs, labels):
    """The quality of a session on a part, one sample at a time; and its first output for all."""
    count = len(next(iter(inputs.values())))
    rows = ({name: array[place : place + 1] for name, array in inputs.items()} for place in range(count))
    outputs = np.concatenate([session.run(None, row)[0] for row in rows])
    return quality(metric, outputs, next(iter(inputs.values())), labels), outputs


def tell(**figures):
    """The program's answer: one JSON object, on a line of its own, the last."""
    print("\n" + json.dumps(figures), flush=True)
