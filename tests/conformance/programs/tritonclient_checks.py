"""`tritonclient[http]` against edgefleet. Arguments: HOST:PORT, and the .npz of inputs and expected outputs."""
# mypy: ignore-errors
# (the client is installed in the environment that runs this, and nowhere else)

from __future__ import annotations

import asyncio
import os
import sys
from contextlib import contextmanager

import ml_dtypes
import numpy as np
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from reporting import report
from tritonclient.utils import InferenceServerException, shared_memory

URL, CASES = sys.argv[1], dict(np.load(sys.argv[2]))
client = triton.InferenceServerClient(URL)
MODELS = sorted({name.partition("/")[0] for name in CASES})
EXAMPLES = {
    "BOOL": np.array([True, False, True]),
    "UINT8": np.array([0, 255, 3], dtype=np.uint8),
    "UINT16": np.array([0, 65_535, 3], dtype=np.uint16),
    "UINT32": np.array([0, 2**32 - 1, 3], dtype=np.uint32),
    "UINT64": np.array([0, 2**64 - 1, 3], dtype=np.uint64),
    "INT8": np.array([-128, 127, 3], dtype=np.int8),
    "INT16": np.array([-(2**15), 2**15 - 1, 3], dtype=np.int16),
    "INT32": np.array([-(2**31), 2**31 - 1, 3], dtype=np.int32),
    "INT64": np.array([-(2**63), 2**63 - 1, 3], dtype=np.int64),
    "FP16": np.array([0.5, -65_504, 3], dtype=np.float16),
    "FP32": np.array([0.1, -3e38, 3], dtype=np.float32),
    "FP64": np.array([0.1, -1e308, 3], dtype=np.float64),
    "BYTES": np.array(["ü".encode(), b"", b"three"], dtype=object),
}


def given(name, array, datatype=None, *, binary=True):
    tensor = triton.InferInput(name, list(array.shape), datatype or triton.np_to_triton_dtype(array.dtype))
    tensor.set_data_from_numpy(array, binary_data=binary)
    return tensor


def case(model):
    return CASES[f"{model}/input"], CASES[f"{model}/output"]


@contextmanager
def refused(status, *words):
    try:
        yield
    except InferenceServerException as error:
        assert error.status() == str(status), (error.status(), error.message())
        for word in words:
            assert word in error.message(), error.message()
    else:
        raise AssertionError(f"not refused with {status}")


def check_the_server_is_live_and_ready():
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("same_fp32")
    assert client.is_model_ready("same_fp32", "1.2.3")
    assert not client.is_model_ready("same_fp32", "9")
    assert not client.is_model_ready("other")


def check_metadata_and_config():
    metadata = client.get_server_metadata()
    assert metadata["name"] == "edgefleet", metadata
    assert "system_shared_memory" in metadata["extensions"], metadata
    model = client.get_model_metadata("same_fp32")
    assert model["name"] == "same_fp32", model
    assert model["versions"] == ["1.2.3"], model
    assert model["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1]}], model
    assert client.get_model_metadata("same_fp32", "1.2.3") == model
    config = client.get_model_config("same_bytes")
    assert config["name"] == "same_bytes", config
    assert config["input"][0]["data_type"] == "TYPE_STRING", config
    assert config["backend"] == "onnxruntime", config


def check_real_models_in_binary():
    for model in MODELS:
        array, expected = case(model)
        outputs = [triton.InferRequestedOutput("Identity", binary_data=True)]
        result = client.infer(model, [given("input_1", array)], outputs=outputs)
        np.testing.assert_allclose(result.as_numpy("Identity"), expected, rtol=1e-4, atol=1e-6)


def check_real_models_in_json():
    for model in MODELS:
        array, expected = case(model)
        outputs = [triton.InferRequestedOutput("Identity", binary_data=False)]
        result = client.infer(model, [given("input_1", array, binary=False)], outputs=outputs, request_id="7")
        np.testing.assert_allclose(result.as_numpy("Identity"), expected, rtol=1e-4, atol=1e-6)
        assert result.get_response()["id"] == "7"


def check_outputs_that_are_not_named_come_in_binary():
    array = EXAMPLES["FP32"]
    result = client.infer("same_fp32", [given("x", array)])
    response = result.get_response()
    assert response["model_name"] == "same_fp32", response
    assert response["model_version"] == "1.2.3", response
    assert response["outputs"][0]["parameters"]["binary_data_size"] == 12, response
    assert (result.as_numpy("y") == array).all()


def check_every_type_in_binary():
    for datatype, array in EXAMPLES.items():
        result = client.infer(f"same_{datatype.lower()}", [given("x", array, datatype)])
        back = result.as_numpy("y")
        assert result.get_output("y")["datatype"] == datatype
        assert (back == array).all(), (datatype, back)
        assert back.dtype == array.dtype, (datatype, back.dtype)


def check_every_type_in_json():
    for datatype, array in EXAMPLES.items():
        outputs = [triton.InferRequestedOutput("y", binary_data=False)]
        result = client.infer(f"same_{datatype.lower()}", [given("x", array, datatype, binary=False)], outputs=outputs)
        back = result.as_numpy("y")
        expected = np.array([text.decode() for text in array], dtype=object) if datatype == "BYTES" else array
        assert (back == expected).all(), (datatype, back)


def check_bf16_is_widened():
    array = np.array([1.5, -2.0, 3.140625], dtype=ml_dtypes.bfloat16)
    for model in ("same_fp32", "same_fp16"):
        result = client.infer(model, [given("x", array, "BF16")])
        assert (result.as_numpy("y").astype(np.float32) == array.astype(np.float32)).all()


def check_not_a_number_comes_in_binary_and_is_refused_in_json():
    array = np.array([np.nan, np.inf], dtype=np.float32)
    back = client.infer("same_fp32", [given("x", array)]).as_numpy("y")
    assert np.isnan(back[0]) and np.isinf(back[1])
    with refused(400, "binary_data"):
        client.infer("same_fp32", [given("x", array)], outputs=[triton.InferRequestedOutput("y", binary_data=False)])


def check_compressed_requests_and_answers():
    array = np.arange(20_000, dtype=np.float32)
    for algorithm in ("gzip", "deflate"):
        for binary in (True, False):
            result = client.infer(
                "same_fp32",
                [given("x", array, binary=binary)],
                outputs=[triton.InferRequestedOutput("y", binary_data=binary)],
                request_compression_algorithm=algorithm,
                response_compression_algorithm=algorithm,
            )
            assert (result.as_numpy("y") == array).all()


def check_classification():
    array = np.array([[1, 2, 3]], dtype=np.float32)
    for binary in (True, False):
        outputs = [triton.InferRequestedOutput("scores", binary_data=binary, class_count=2)]
        best = client.infer("linear", [given("x", array)], outputs=outputs).as_numpy("scores")
        assert best.shape == (1, 2), best.shape
        texts = [text.decode() if isinstance(text, bytes) else text for text in best[0]]
        assert texts == ["12:1:yes", "0:0:no"], texts


def check_priority_timeout_and_own_parameters():
    result = client.infer(
        "same_fp32",
        [given("x", EXAMPLES["FP32"])],
        priority=1,
        timeout=30_000_000,
        parameters={"key": "user-5", "prediction_id": True},
    )
    assert len(result.get_response()["parameters"]["prediction_id"]) > 10


def check_asynchronous_calls():
    requests = [client.async_infer("same_fp32", [given("x", EXAMPLES["FP32"])]) for _ in range(20)]
    for request in requests:
        assert (request.get_result().as_numpy("y") == EXAMPLES["FP32"]).all()


async def check_the_asyncio_client():
    async with triton_aio.InferenceServerClient(URL) as other:
        assert await other.is_server_live()
        results = await asyncio.gather(*(other.infer("same_fp32", [given("x", EXAMPLES["FP32"])]) for _ in range(20)))
        assert all((result.as_numpy("y") == EXAMPLES["FP32"]).all() for result in results)
        assert (await other.get_model_metadata("same_fp32"))["name"] == "same_fp32"


def check_shared_memory():
    key, array = f"/edgefleet-check-{os.getpid()}", EXAMPLES["FP32"]
    region = shared_memory.create_shared_memory_region("region", key, 64)
    try:
        client.unregister_system_shared_memory()
        client.unregister_cuda_shared_memory()
        shared_memory.set_shared_memory_region(region, [array], offset=8)
        client.register_system_shared_memory("region", key, 64)
        assert client.get_system_shared_memory_status() == [
            {"name": "region", "key": key, "offset": 0, "byte_size": 64}
        ]
        assert client.get_system_shared_memory_status("region")[0]["byte_size"] == 64
        tensor = triton.InferInput("x", [3], "FP32")
        tensor.set_shared_memory("region", 12, offset=8)
        output = triton.InferRequestedOutput("y")
        output.set_shared_memory("region", 12, offset=32)
        result = client.infer("same_fp32", [tensor], outputs=[output])
        place = result.get_output("y")
        assert place["parameters"]["shared_memory_region"] == "region", place
        back = shared_memory.get_contents_as_numpy(region, np.float32, place["shape"], offset=32)
        assert (back == array).all()
        tensor.set_shared_memory("region", 12, offset=60)
        with refused(400, "region"):
            client.infer("same_fp32", [tensor])
        client.unregister_system_shared_memory("region")
        assert client.get_system_shared_memory_status() == []
        with refused(400, "region"):
            client.infer("same_fp32", [tensor], outputs=[output])
    finally:
        back = None  # a view keeps the mapping open
        shared_memory.destroy_shared_memory_region(region)


def check_shared_memory_that_shrinks_or_is_not_there():
    key = f"/edgefleet-shrink-{os.getpid()}"
    region = shared_memory.create_shared_memory_region("shrinking", key, 4096)
    try:
        client.register_system_shared_memory("shrinking", key, 4096)
        os.truncate(f"/dev/shm{key}", 0)  # noqa: S108 - POSIX shared memory
        tensor = triton.InferInput("x", [3], "FP32")
        tensor.set_shared_memory("shrinking", 12)
        with refused(400, "smaller"):
            client.infer("same_fp32", [tensor])
        assert client.is_server_live()
        client.unregister_system_shared_memory("shrinking")
    finally:
        shared_memory.destroy_shared_memory_region(region)
    for wrong in ("/not-there", "/../etc/passwd", "/a/b"):
        with refused(400):
            client.register_system_shared_memory("wrong", wrong, 16)


def check_there_is_no_cuda_memory():
    assert client.get_cuda_shared_memory_status() == []
    with refused(501):
        client.register_cuda_shared_memory("region", b"handle", 0, 64)


def check_models_are_listed_unloaded_and_loaded():
    index = {entry["name"]: entry for entry in client.get_model_repository_index()}
    assert index["same_int8"]["state"] == "READY", index
    assert index["same_int8"]["version"] == "1.2.3", index
    client.unload_model("same_int8")
    assert not client.is_model_ready("same_int8")
    with refused(404, "same_int8"):
        client.infer("same_int8", [given("x", EXAMPLES["INT8"])])
    client.load_model("same_int8")
    assert client.is_model_ready("same_int8")
    assert (client.infer("same_int8", [given("x", EXAMPLES["INT8"])]).as_numpy("y") == EXAMPLES["INT8"]).all()
    with refused(404, "other"):
        client.load_model("other")
    with refused(501):
        client.load_model("same_int8", config="{}")


def check_statistics():
    def count():
        (stats,) = client.get_inference_statistics("same_uint8")["model_stats"]
        return stats["inference_stats"]["success"]["count"], stats["inference_count"]

    client.infer("same_uint8", [given("x", EXAMPLES["UINT8"])])
    before = count()
    client.infer("same_uint8", [given("x", EXAMPLES["UINT8"])])
    assert count() == (before[0] + 1, before[1] + 1), (before, count())
    assert client.get_inference_statistics("same_uint8", "1.2.3")["model_stats"]
    assert len(client.get_inference_statistics()["model_stats"]) > 1


def check_trace_and_log_settings_are_not_supported():
    for ask in (client.get_trace_settings, client.get_log_settings):
        with refused(501):
            ask()


def check_errors_say_what_was_wrong():
    array = EXAMPLES["FP32"]
    with refused(404, "other"):
        client.infer("other", [given("x", array)])
    with refused(404, "9"):
        client.infer("same_fp32", [given("x", array)], model_version="9")
    with refused(404, "other"):
        client.get_model_metadata("other")
    with refused(400, "shape"):
        client.infer("same_fp32", [given("x", array.reshape(1, 3))])
    with refused(400, "FP32"):
        client.infer("same_fp32", [given("x", EXAMPLES["INT32"])])
    with refused(400, "x"):
        client.infer("same_fp32", [given("z", array)])
    with refused(400, "other"):
        client.infer("same_fp32", [given("x", array)], outputs=[triton.InferRequestedOutput("other")])
    with refused(400, "sequence"):
        client.infer("same_fp32", [given("x", array)], sequence_id=5, sequence_start=True)


report(globals())
