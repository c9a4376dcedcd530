"""What the protocol tells of the server and its models, the repository, and paths that lead nowhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edge_agent.version import AGENT_VERSION
from tests.agent.local_api.oip.asking import INFER, X, ask, ask_json, error_of
from tests.agent.local_api.small_service import SmallService
from tests.agent.runtime import onnx_files


def get(service: SmallService, path: str, status: int = 200) -> Any:
    response = ask(service, "GET", path)
    assert response.status == status, response.body
    return json.loads(response.body)


def test_the_server_says_who_it_is_and_what_it_can(service: SmallService) -> None:
    answer = get(service, "/v2")

    assert (answer["name"], answer["version"]) == ("edgefleet", AGENT_VERSION)
    assert {"binary_tensor_data", "system_shared_memory", "classification"} <= set(answer["extensions"])


def test_it_lives_and_is_ready_while_a_model_answers(service: SmallService) -> None:
    assert get(service, "/v2/health/live") == {"live": True}
    assert get(service, "/v2/health/ready") == {"ready": True}

    service.unload_model("linear")

    assert get(service, "/v2/health/live") == {"live": True}
    assert get(service, "/v2/health/ready", 503) == {"ready": False, "error": "no model is loaded yet"}


def test_a_models_metadata_has_its_signature_and_versions(service: SmallService, tmp_path: Path) -> None:
    service.add("linear", onnx_files.linear(tmp_path / "b.onnx"), version="2.0.0", arm="b")

    assert get(service, "/v2/models/linear") == {
        "name": "linear",
        "versions": ["1.0.0", "2.0.0"],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 3]}],
        "outputs": [{"name": "scores", "datatype": "FP32", "shape": [-1, 2]}],
    }
    assert get(service, "/v2/models/linear/versions/2.0.0")["versions"] == ["2.0.0"]


def test_a_shadow_answers_nobody_and_is_not_named(service: SmallService, tmp_path: Path) -> None:
    service.add("linear", onnx_files.linear(tmp_path / "b.onnx"), version="2.0.0", arm="b", shadow=True)

    assert get(service, "/v2/models/linear")["versions"] == ["1.0.0"]
    assert error_of(ask(service, "GET", "/v2/models/linear/versions/2.0.0"), 404)
    assert error_of(ask(service, "POST", "/v2/models/linear/versions/2.0.0/infer", {"inputs": [X]}), 404)


def test_a_config_leaves_the_batch_out_of_the_dimensions(service: SmallService) -> None:
    alone = get(service, "/v2/models/linear/config")
    service.max_batch = 16
    service.load_model("linear")
    batched = get(service, "/v2/models/linear/versions/1.0.0/config")

    assert (alone["max_batch_size"], alone["input"]) == (0, [{"name": "x", "data_type": "TYPE_FP32", "dims": [-1, 3]}])
    assert (batched["max_batch_size"], batched["input"][0]["dims"]) == (16, [3])
    assert (batched["platform"], batched["backend"]) == ("onnxruntime_onnx", "onnxruntime")


@pytest.mark.parametrize("what", ["", "/ready", "/config", "/stats"])
@pytest.mark.parametrize("model", ["other", "linear/versions/9", "LINEAR", "linea%72%2f"])
def test_an_unknown_model_or_version_is_not_found(service: SmallService, model: str, what: str) -> None:
    assert error_of(ask(service, "GET", f"/v2/models/{model}{what}"), 404)


@pytest.mark.parametrize("name", ["a b", "ä", "a%b", "a/b", "a?b", "\U0001f600"])
def test_names_in_paths_are_percent_decoded(tmp_path: Path, name: str) -> None:
    service = SmallService({name: onnx_files.linear(tmp_path / "m.onnx")})
    encoded = "".join(f"%{byte:02X}" for byte in name.encode())

    assert get(service, f"/v2/models/{encoded}")["name"] == name
    assert get(service, f"/v2/models/{encoded}/ready") == {"name": name, "ready": True}
    assert ask_json(service, f"/v2/models/{encoded}/infer", inputs=[X])["model_name"] == name


def test_statistics_count_calls_and_their_time(service: SmallService) -> None:
    for _ in range(3):
        ask_json(service, INFER, inputs=[X])

    (of_all,) = get(service, "/v2/models/stats")["model_stats"]
    (of_one,) = get(service, "/v2/models/linear/versions/1.0.0/stats")["model_stats"]

    assert of_all == of_one
    assert (of_one["name"], of_one["version"], of_one["inference_count"]) == ("linear", "1.0.0", 3)
    assert of_one["inference_stats"]["success"]["count"] == 3
    assert of_one["inference_stats"]["compute_infer"]["ns"] > 0
    assert of_one["batch_stats"] == [{"batch_size": 1, "compute_infer": {"count": 3}}]
    assert get(service, "/v2/models/linear/stats")["model_stats"] == [of_one]


def test_models_are_unloaded_listed_and_loaded_again(service: SmallService) -> None:
    def index(body: object = None) -> Any:
        response = ask(service, "POST", "/v2/repository/index", body)
        assert response.status == 200
        return json.loads(response.body)

    ready = {"name": "linear", "version": "1.0.0", "state": "READY", "reason": ""}
    assert index() == index({}) == index({"ready": True}) == [ready]

    assert ask(service, "POST", "/v2/repository/models/linear/unload").status == 200

    assert index() == [{**ready, "state": "UNAVAILABLE", "reason": "unloaded"}]
    assert index({"ready": True}) == []
    assert "unloaded" in get(service, "/v2/models/linear/ready", 503)["error"]
    assert error_of(ask(service, "POST", INFER, {"inputs": [X]}), 404)

    assert ask(service, "POST", "/v2/repository/models/linear/load", {}).status == 200
    assert ask_json(service, INFER, inputs=[X])["outputs"]


def test_a_model_is_loaded_as_configured_or_not_at_all(service: SmallService) -> None:
    body = {"parameters": {"config": "{}"}}

    assert error_of(ask(service, "POST", "/v2/repository/models/linear/load", body), 501)
    assert error_of(ask(service, "POST", "/v2/repository/models/other/load"), 404)
    assert error_of(ask(service, "POST", "/v2/repository/models/other/unload", {}), 404)
    assert error_of(ask(service, "POST", "/v2/repository/models/linear/load", b"{"), 400)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v2/logging"),
        ("POST", "/v2/logging"),
        ("GET", "/v2/trace/setting"),
        ("POST", "/v2/models/linear/trace/setting"),
    ],
)
def test_what_is_not_supported_says_so(service: SmallService, method: str, path: str) -> None:
    assert path in error_of(ask(service, method, path), 501)


@pytest.mark.parametrize(
    "path",
    [
        "/v2/",
        "/v2x",
        "/V2",
        "/v2/models",
        "/v2/models/",
        "/v2/models//infer",
        "/v2/models/linear/",
        "/v2/models/linear/versions",
        "/v2/models/linear/versions/",
        "/v2/models/linear/versions//infer",
        "/v2/models/linear/infer/more",
        "/v2/models/linear/nothing",
        "/v2/models/%ff/infer",
        "/v2/repository/models//load",
        "/v2/systemsharedmemory/region//status",
        "/v2/systemsharedmemory/region/r/nothing",
        "/v2/cudasharedmemory/region/r/nothing",
        "/v2//health/live",
    ],
)
def test_a_path_that_leads_nowhere_is_not_found(service: SmallService, path: str) -> None:
    assert "/v2" in error_of(ask(service, "POST", path, {}), 404)


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", INFER, "POST"),
        ("HEAD", INFER, "POST"),
        ("POST", "/v2", "GET, HEAD"),
        ("POST", "/v2/models/linear", "GET, HEAD"),
        ("PUT", "/v2/models/linear/config", "GET, HEAD"),
        ("GET", "/v2/repository/index", "POST"),
        ("DELETE", "/v2/logging", "GET, POST, HEAD"),
    ],
)
def test_a_wrong_method_is_told_the_right_ones(service: SmallService, method: str, path: str, allowed: str) -> None:
    response = ask(service, method, path, {})

    assert error_of(response, 405)
    assert response.headers == (("Allow", allowed),)


def test_a_head_is_answered_as_its_get(service: SmallService) -> None:
    assert ask(service, "HEAD", "/v2/models/linear") == ask(service, "GET", "/v2/models/linear")


@pytest.mark.parametrize(
    ("media", "path", "status"),
    [
        ("application/octet-stream", INFER, 200),
        ("application/json", INFER, 200),
        ("image/png", INFER, 415),
        ("application/octet-stream", "/predict", 415),
    ],
)
def test_only_the_protocol_takes_bytes(service: SmallService, media: str, path: str, status: int) -> None:
    assert ask(service, "POST", path, {"inputs": [X]}, content_type=media).status == status
