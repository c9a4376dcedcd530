"""The LitServe program: server.py PORT WORKERS MODEL. Runs in LitServe's environment."""
# mypy: disable-error-code="import-not-found,misc,no-any-return"

import os
import sys
from typing import Any

import litserve
import numpy as np
import onnxruntime


class KeywordApi(litserve.LitAPI):
    """The keyword model."""

    def setup(self, device: str) -> None:
        """Make the session of this worker."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(os.environ["BENCH_ORT_THREADS"])
        self.session = onnxruntime.InferenceSession(sys.argv[3], options, providers=["CPUExecutionProvider"])

    def decode_request(self, request: dict[str, Any]) -> Any:
        """JSON to the input."""
        return np.asarray(request["input"], dtype=np.float32)

    def predict(self, x: Any) -> Any:
        """Run it."""
        return self.session.run(None, {"input_1": x})[0]

    def encode_response(self, output: Any) -> dict[str, Any]:
        """The output to JSON."""
        return {"output": output.tolist()}


if __name__ == "__main__":
    server = litserve.LitServer(
        KeywordApi(),
        accelerator="cpu",
        workers_per_device=int(sys.argv[2]),
        fast_queue=os.environ.get("BENCH_FAST_QUEUE") == "1",
    )
    server.run(
        host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False, log_level="warning", access_log=False
    )
