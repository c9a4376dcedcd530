"""An application beside an agent in another process: it asks for predictions, and reports the truth when it knows it.

    edge-agent run --model digits=models/digits/fp32/1.1.0.onnx --socket /tmp/edgefleet.sock
    python examples/client/camera.py unix:///tmp/edgefleet.sock models/digits/holdout.npz

It loads numpy and a socket, not the runtime: the model lives in the agent, once, for every application on the device.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from edge_agent import AgentError, Client

MODEL = "digits"


def main() -> int:
    """Classify the images one by one; returns the exit status."""
    parser = argparse.ArgumentParser(description="Ask a local agent about held-out digits.")
    parser.add_argument("url", help="http://HOST:PORT or unix:///PATH")
    parser.add_argument("holdout", type=Path, help="an .npz with images and labels")
    parser.add_argument("--count", type=int, default=100)
    options = parser.parse_args()
    with np.load(options.holdout) as arrays:
        images, labels = arrays["images"][: options.count], arrays["labels"][: options.count]
    right = 0
    try:
        with Client(options.url, timeout_s=2.0, retries=2) as client:
            for image, label in zip(images, labels.tolist(), strict=True):
                prediction = client.infer(MODEL, image[None, None], key="camera-1")
                guess = int(next(iter(prediction.outputs.values())).argmax())
                client.report_outcome(prediction.id, correct=guess == label)
                right += guess == label
    except AgentError as error:
        print(f"camera: {error}")
        return 1
    print(f"{right} of {len(labels)} right")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
