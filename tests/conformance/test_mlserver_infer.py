"""`mlserver infer`, the batch command as MLServer ships it: a file of requests in, a file of answers out."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conformance.client_environments import environment
from tests.conformance.conftest import VERSION, Served

ROWS = 20
_TIMEOUT_S = 90.0


def infer(served: Served, folder: Path, model: str, requests: list[object], *options: str) -> dict[int, Any]:
    """The answers of `mlserver infer` by the line of their request."""
    source, target = folder / "requests.jsonl", folder / "answers.jsonl"
    source.write_text("".join(json.dumps(request) + "\n" for request in requests), encoding="utf-8")
    command: list[str | Path] = [
        environment("mlserver") / "mlserver", "infer", "--url", served.address, "--model-name", model,
        "--input-data-path", source, "--output-data-path", target, "--workers", "4", "--retries", "1", *options,
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=_TIMEOUT_S)
    answers = [json.loads(line) for line in target.read_text(encoding="utf-8").splitlines()]
    return {answer["parameters"]["batch_index"]: answer for answer in answers}


def rows(served: Served) -> tuple[list[object], np.ndarray[Any, Any]]:
    array = np.random.default_rng(3).uniform(size=(ROWS, 3)).astype(np.float32)
    tensors = [{"name": "x", "shape": [1, 3], "datatype": "FP32", "data": row.tolist()} for row in array]
    return [{"id": f"row-{number}", "inputs": [tensor]} for number, tensor in enumerate(tensors)], array


@pytest.mark.parametrize("options", [("--batch-size", "4"), ("--binary-data",)])
def test_every_request_of_a_file_is_answered(served: Served, tmp_path: Path, options: tuple[str, ...]) -> None:
    requests, array = rows(served)

    answers = infer(served, tmp_path, "linear", requests, *options)

    assert sorted(answers) == list(range(ROWS))
    for number, answer in answers.items():
        (output,) = answer["outputs"]
        assert (answer["model_name"], answer["id"]) == ("linear", f"row-{number}")
        assert (output["name"], output["shape"]) == ("scores", [1, 2])
        np.testing.assert_allclose(output["data"], [0, array[number].sum() * 2], rtol=1e-5)
    assert {answer["model_version"] for answer in answers.values()} <= {VERSION, None}


def test_a_compressed_answer_is_understood(served: Served, tmp_path: Path) -> None:
    data = [float(value) for value in range(20_000)]
    request = {"inputs": [{"name": "x", "shape": [20_000], "datatype": "FP32", "data": data}]}

    answers = infer(served, tmp_path, "same_fp32", [request], "-H", "Accept-Encoding:gzip")

    assert answers[0]["outputs"][0]["data"] == data


def test_a_real_model_answers_as_onnxruntime_does(served: Served, tmp_path: Path) -> None:
    cases = np.load(served.cases)
    array, expected = cases["kws/input"], cases["kws/output"]
    tensor = {"name": "input_1", "shape": list(array.shape), "datatype": "FP32", "data": array.ravel().tolist()}

    answers = infer(served, tmp_path, "kws", [{"inputs": [tensor]}])

    np.testing.assert_allclose(answers[0]["outputs"][0]["data"], expected.ravel(), rtol=1e-4, atol=1e-6)


def test_a_refusal_reaches_the_file_with_its_words(served: Served, tmp_path: Path) -> None:
    tensor = {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}

    answers = infer(served, tmp_path, "linear", [{"inputs": [tensor]}])

    assert "shape" in answers[0]["error"]["msg"]
