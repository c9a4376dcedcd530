"""The parts of the emulated run that decide something, on any machine."""

from __future__ import annotations

from pathlib import Path

from tests.arm64.__main__ import outcome_of
from tests.arm64.describe_cpu import describe, features
from tests.arm64.deselected import DESELECTED
from tests.arm64.emulation import chosen
from tests.arm64.requirements import ROOT, base_requirements, tools_of_tests

CORTEX_A72, CORTEX_A76 = 0x8FB, 0x119FFB
"""What the emulator tells its programs of these CPUs (AT_HWCAP)."""


def test_a_cpu_is_described_by_the_features_that_programs_are_told() -> None:
    text = describe(cpu="cortex-a76", cores=2, hwcap=CORTEX_A76, hwcap2=0)

    assert text.count("processor\t:") == 2
    assert "CPU part\t: 0xd0b\n" in text
    assert "asimddp" in features(CORTEX_A76, 0)
    assert "asimddp" not in features(CORTEX_A72, 0)
    assert features(0, 1 << 13) == ["i8mm"]


def test_a_pattern_leaves_out_a_file_a_test_with_all_its_cases_or_a_name_with_a_star() -> None:
    patterns = ["a.py", "b.py::test_x", "b.py::test_gone", "c.py::test_s*"]
    ids = ["a.py::test_1", "b.py::test_x[1]", "b.py::test_xy", "c.py::test_soak[2-3]", "c.py::test_o", "aa.py::test_1"]

    runs, unused = chosen(ids, patterns)

    assert [one for one, is_run in zip(ids, runs, strict=True) if is_run] == [
        "b.py::test_xy", "c.py::test_o", "aa.py::test_1"
    ]  # fmt: skip
    assert unused == ["b.py::test_gone"]


def test_every_file_that_is_left_out_exists_and_has_its_reason() -> None:
    for pattern, reason in DESELECTED.items():
        assert (ROOT / pattern.partition("::")[0]).is_file(), pattern
        assert len(reason) > 10, pattern


def test_a_run_without_a_report_has_passed_nothing(tmp_path: Path) -> None:
    lost = outcome_of("x", status=1, report=tmp_path / "none.xml", took_s=1.0)
    (tmp_path / "r.xml").write_text(
        '<testsuites><testsuite errors="1" failures="2" skipped="3" tests="10"/></testsuites>', encoding="utf-8"
    )
    counted = outcome_of("y", status=1, report=tmp_path / "r.xml", took_s=1.0)

    assert (lost.passed, lost.line().split()[0]) == (0, "FAILED")
    assert (counted.passed, counted.failed, counted.skipped) == (4, 3, 3)


def test_the_device_gets_what_the_project_names_and_the_tests_their_tools() -> None:
    assert any(one.startswith("onnxruntime") for one in base_requirements())
    assert not any(one.startswith(("onnx>", "pytest", "scipy")) for one in base_requirements())
    assert {"pytest", "hypothesis", "onnx", "pyarrow"} <= {one.partition(">")[0] for one in tools_of_tests()}
