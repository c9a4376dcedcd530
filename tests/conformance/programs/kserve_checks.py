"""KServe's `InferenceRESTClient` against edgefleet. Arguments: HOST:PORT, and the .npz of inputs and outputs."""
# mypy: ignore-errors
# (the client is installed in the environment that runs this, and nowhere else)

from __future__ import annotations

import sys

import httpx
import numpy as np
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig
from reporting import report

BASE, CASES = f"http://{sys.argv[1]}", dict(np.load(sys.argv[2]))
MODELS = sorted({name.partition("/")[0] for name in CASES})


def client():
    return InferenceRESTClient(RESTConfig(protocol="v2"))


def given(name, array, datatype, *, binary):
    tensor = InferInput(name=name, shape=list(array.shape), datatype=datatype)
    tensor.set_data_from_numpy(array, binary_data=binary)
    return tensor


async def infer(model, tensor, request_id=None, **parameters):
    async with client() as one:
        request = InferRequest(
            model_name=model, infer_inputs=[tensor], request_id=request_id, parameters=parameters or None
        )
        return await one.infer(BASE, request, model_name=model)


async def check_the_server_and_its_models_are_ready():
    async with client() as one:
        assert await one.is_server_live(BASE) is True
        assert await one.is_server_ready(BASE) is True
        assert await one.is_model_ready(BASE, "same_fp32") is True
        assert await one.is_model_ready(BASE, "other") is False


async def check_real_models_in_json_and_binary():
    for model in MODELS:
        array, expected = CASES[f"{model}/input"], CASES[f"{model}/output"]
        for binary in (True, False):
            response = await infer(model, given("input_1", array, "FP32", binary=binary), request_id="7")
            assert (response.model_name, response.id) == (model, "7")
            np.testing.assert_allclose(response.outputs[0].as_numpy(), expected, rtol=1e-4, atol=1e-6)


async def check_a_plain_dictionary():
    body = {"inputs": [{"name": "x", "shape": [2], "datatype": "FP32", "data": [1.5, 2]}]}
    async with client() as one:
        response = await one.infer(BASE, body, model_name="same_fp32")
    assert response.outputs[0].data == [1.5, 2.0], response.outputs[0].data


async def check_text_booleans_and_whole_numbers():
    for datatype, array in (
        ("BYTES", np.array([b"a", "ü".encode()], dtype=object)),
        ("BOOL", np.array([True, False])),
        ("INT64", np.array([-(2**63), 2**63 - 1])),
        ("UINT8", np.array([0, 255], dtype=np.uint8)),
    ):
        for binary in (True, False):
            response = await infer(f"same_{datatype.lower()}", given("x", array, datatype, binary=binary))
            back = response.outputs[0].data
            expected = [text.decode() for text in array] if datatype == "BYTES" else array.tolist()
            assert back == expected, (datatype, binary, back)


async def check_half_floats_in_binary():
    array = np.array([0.5, -2], dtype=np.float16)
    response = await infer("same_fp16", given("x", array, "FP16", binary=True), binary_data_output=True)
    assert (response.outputs[0].as_numpy() == array).all()


async def check_a_large_answer_is_understood():
    array = np.arange(20_000, dtype=np.float32)
    response = await infer("same_fp32", given("x", array, "FP32", binary=False))
    assert (response.outputs[0].as_numpy() == array).all()


async def check_errors_have_their_status_and_words():
    array = np.array([1.5], dtype=np.float32)
    for model, tensor, status, word in (
        ("other", given("x", array, "FP32", binary=False), 404, "other"),
        ("same_fp32", given("z", array, "FP32", binary=False), 400, "z"),
        ("same_int8", given("x", array, "FP32", binary=True), 400, "INT8"),
    ):
        try:
            await infer(model, tensor)
        except httpx.HTTPStatusError as error:
            assert error.response.status_code == status, error
            assert word in str(error), error
        else:
            raise AssertionError(f"{model} was not refused")


report(globals())
