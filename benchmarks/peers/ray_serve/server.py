"""The Ray Serve program: server.py PORT REPLICAS MODEL. Runs in Ray's environment."""
# mypy: disable-error-code="import-not-found,misc,no-any-return,untyped-decorator,attr-defined"

import os
import sys
from typing import Any

import numpy as np
import onnxruntime
import ray
from ray import serve
from ray.serve.schema import LoggingConfig
from starlette.requests import Request


@serve.deployment(
    num_replicas=int(sys.argv[2]),
    max_ongoing_requests=100,
    ray_actor_options={"num_cpus": 0.5},
    logging_config=LoggingConfig(enable_access_log=False, log_level="WARNING"),
)
class Keywords:
    """The keyword model."""

    def __init__(self, path: str, threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    async def __call__(self, request: Request) -> dict[str, Any]:
        """Run it."""
        body = await request.json()
        values = np.asarray(body["input"], dtype=np.float32)
        return {"output": self.session.run(None, {"input_1": values})[0].tolist()}


if __name__ == "__main__":
    ray.init(include_dashboard=False, logging_level="warning")
    serve.start(
        http_options={"host": "127.0.0.1", "port": int(sys.argv[1])},
        logging_config=LoggingConfig(enable_access_log=False, log_level="WARNING"),
    )
    serve.run(Keywords.bind(sys.argv[3], int(os.environ["BENCH_ORT_THREADS"])), blocking=True)
