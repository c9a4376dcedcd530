"""What is chosen for a machine, why, and that ONNX Runtime is really told so."""

from __future__ import annotations

import pytest

from edge_agent.config import RuntimeSection
from edge_agent.errors import ConfigError
from edge_agent.runtime.cpu import MachineFacts
from edge_agent.runtime.session_settings import (
    Int8Kernels,
    Optimisation,
    SessionSettings,
    Spinning,
    default_settings,
    in_float_instead,
    session_options,
)


def machine(*, quota: float = 4.0, int8_saturates: bool = False) -> MachineFacts:
    return MachineFacts(signature="x86_64:avx2", quota=quota, host_cores=8, int8_saturates=int8_saturates)


def test_one_thread_is_the_default_and_the_config_has_the_last_word() -> None:
    by_default, _ = default_settings(machine=machine(), runtime=RuntimeSection())
    told, choices = default_settings(machine=machine(), runtime=RuntimeSection(threads=3))

    assert (by_default.threads, told.threads) == (1, 3)
    assert any("runtime.threads" in choice.reason for choice in choices)


@pytest.mark.parametrize(
    ("saturates", "quantizes", "kernels"),
    [
        (True, True, Int8Kernels.U8U8),
        (True, False, Int8Kernels.NATIVE),
        (False, True, Int8Kernels.NATIVE),
        (False, False, Int8Kernels.NATIVE),
    ],
)
def test_quantized_kernels_are_made_exact_only_where_they_would_saturate(
    saturates: bool, quantizes: bool, kernels: Int8Kernels
) -> None:
    settings, _ = default_settings(
        machine=machine(int8_saturates=saturates), runtime=RuntimeSection(), quantizes=quantizes
    )

    assert settings.int8_kernels is kernels


def test_no_default_rounds_more_than_the_model() -> None:
    settings, _ = default_settings(machine=machine(int8_saturates=True), runtime=RuntimeSection())

    assert not settings.bfloat16


def test_every_choice_has_a_reason() -> None:
    _, choices = default_settings(machine=machine(int8_saturates=True), runtime=RuntimeSection())

    assert {choice.setting for choice in choices} >= {"threads", "spinning", "arena", "int8 kernels"}
    assert all(choice.value and choice.reason for choice in choices)


@pytest.mark.parametrize("threads", [0, -1, 257])
def test_a_senseless_number_of_threads_is_refused(threads: int) -> None:
    with pytest.raises(ConfigError, match="threads"):
        SessionSettings(threads=threads)


@pytest.mark.parametrize(
    ("settings", "key", "value"),
    [
        (SessionSettings(), "session.intra_op.allow_spinning", "0"),
        (SessionSettings(spinning=Spinning.ON), "session.intra_op.allow_spinning", "1"),
        (SessionSettings(spinning=Spinning.BOUNDED), "session.intra_op.spin_duration_us", "200"),
        (SessionSettings(int8_kernels=Int8Kernels.U8U8), "session.x64quantprecision", "1"),
        (SessionSettings(int8_kernels=Int8Kernels.FLOAT), "session.disable_quant_qdq", "1"),
        (SessionSettings(bfloat16=True), "mlas.enable_gemm_fastmath_arm64_bfloat16", "1"),
        (SessionSettings(kleidiai=False), "mlas.disable_kleidiai", "1"),
        (SessionSettings(insist=True), "session.disable_cpu_ep_fallback", "1"),
        (SessionSettings(providers=("X", "CPUExecutionProvider")), "session.record_ep_graph_assignment_info", "1"),
    ],
)
def test_a_setting_reaches_onnx_runtime(settings: SessionSettings, key: str, value: str) -> None:
    assert session_options(settings).get_session_config_entry(key) == value


@pytest.mark.parametrize(
    "key",
    [
        "session.x64quantprecision",
        "session.disable_quant_qdq",
        "mlas.disable_kleidiai",
        "session.disable_cpu_ep_fallback",
        "session.record_ep_graph_assignment_info",
    ],
)
def test_nothing_is_set_that_nobody_asked_for(key: str) -> None:
    with pytest.raises(RuntimeError, match=key):
        session_options(SessionSettings()).get_session_config_entry(key)


def test_threads_memory_and_optimisation_reach_onnx_runtime() -> None:
    options = session_options(
        SessionSettings(threads=2, arena=False, mem_pattern=False, optimisation=Optimisation.NONE)
    )

    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (2, 1)
    assert (options.enable_cpu_mem_arena, options.enable_mem_pattern) == (False, False)
    assert options.graph_optimization_level.name == "ORT_DISABLE_ALL"


def test_the_graph_key_holds_what_changes_the_graph_and_nothing_else() -> None:
    key = SessionSettings().graph_key()

    assert SessionSettings(threads=2, arena=False, spinning=Spinning.ON).graph_key() == key
    assert SessionSettings(int8_kernels=Int8Kernels.FLOAT).graph_key() != key
    assert SessionSettings(bfloat16=True).graph_key() != key
    assert SessionSettings(optimisation=Optimisation.BASIC).graph_key() != key


def test_only_the_exact_kernels_have_a_remedy() -> None:
    assert in_float_instead(SessionSettings()) is None
    assert in_float_instead(SessionSettings(int8_kernels=Int8Kernels.FLOAT)) is None
    assert in_float_instead(SessionSettings(threads=2, int8_kernels=Int8Kernels.U8U8)) == SessionSettings(
        threads=2, int8_kernels=Int8Kernels.FLOAT
    )
