"""The FastAPI program. Runs in FastAPI's environment."""

import os
from typing import Any

import numpy as np
import onnxruntime
from fastapi import FastAPI
from pydantic import BaseModel

options = onnxruntime.SessionOptions()
options.intra_op_num_threads = int(os.environ["BENCH_ORT_THREADS"])
session = onnxruntime.InferenceSession(os.environ["BENCH_MODEL"], options, providers=["CPUExecutionProvider"])
app = FastAPI()


class PredictRequest(BaseModel):
    """What is asked."""

    input: list[list[list[list[float]]]]


def _predict(request: PredictRequest) -> dict[str, Any]:
    values = np.array(request.input, dtype=np.float32)
    return {"output": session.run(None, {"input_1": values})[0].tolist()}


if os.environ.get("BENCH_ASYNC") == "1":

    @app.post("/predict")
    async def predict(request: PredictRequest) -> dict[str, Any]:
        """Run it on the event loop, which is the fastest for a model this small."""
        return _predict(request)

else:

    @app.post("/predict")
    def predict_on_a_thread(request: PredictRequest) -> dict[str, Any]:
        """Run it on a thread of the framework's pool."""
        return _predict(request)
