"""The one request that every stack answers: JSON in, a run of the keyword model, JSON out."""

from __future__ import annotations

import os
from typing import Any

import msgspec
import numpy as np
import onnxruntime as ort


class Body(msgspec.Struct):
    """The request."""

    inputs: dict[str, list[list[list[list[float]]]]]


_DECODER = msgspec.json.Decoder(Body)
_ENCODER = msgspec.json.Encoder()


def open_session() -> Any:
    """A session of $BENCH_MODEL with one thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(os.environ["BENCH_MODEL"], options, providers=["CPUExecutionProvider"])


_SESSION = open_session()


def answer(body: bytes | bytearray) -> bytes:
    """The answer to the request."""
    arrays = {name: np.asarray(value, np.float32) for name, value in _DECODER.decode(body).inputs.items()}
    return _ENCODER.encode({"outputs": {"Identity": _SESSION.run(None, arrays)[0].tolist()}})
