"""The BentoML service. Runs in BentoML's environment."""
# mypy: disable-error-code="import-not-found,misc,no-any-return,untyped-decorator"

import os
from typing import Annotated

import bentoml
import numpy as np
import onnxruntime
from bentoml.validators import DType, Shape


@bentoml.service(workers=int(os.environ["BENCH_WORKERS"]), logging={"access": {"enabled": False}})
class KeywordService:
    """The keyword model."""

    def __init__(self) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(os.environ["BENCH_ORT_THREADS"])
        self.session = onnxruntime.InferenceSession(
            os.environ["BENCH_MODEL"], options, providers=["CPUExecutionProvider"]
        )

    @bentoml.api
    def predict(
        self,
        input: Annotated[np.ndarray, Shape((1, 49, 10, 1)), DType("float32")],  # noqa: A002 - the name in the JSON
    ) -> np.ndarray:
        """Run it."""
        return self.session.run(None, {"input_1": input})[0]
