"""The agent's tests that do not run under emulation, each with its reason. A file, or FILE::TEST for all its cases.

Never here: a test that fails because ARM answers differently. That is what the run is for.
"""

from __future__ import annotations

_MEMORY = "measures resident memory, which under emulation holds the emulator and the code it translates"
_QUICK = "asserts that something is quick"
_SLOW_MODEL = "calls a model that is slow by design, and waits seconds for what takes minutes under emulation"
_PROCESSES = "starts an agent for every case, minutes under emulation, to read what it says of a wrong argument"
_RUNTIME = "tests/agent/runtime"

DESELECTED: dict[str, str] = {
    "tests/agent/local_api/test_inline.py": _QUICK,
    f"{_RUNTIME}/test_eviction.py::test_reloads_stay_near_the_fewest_possible_and_below_those_of_lru": (
        "simulates thousands of loads in plain Python: minutes, and nothing in it depends on the CPU"
    ),
    f"{_RUNTIME}/test_lane_scaling.py::test_a_look_at_the_machine_is_quick_and_sane": _QUICK,
    f"{_RUNTIME}/test_lanes_deadlines.py::test_a_batch_goes_on_for_those_with_time_and_lets_*": _SLOW_MODEL,
    f"{_RUNTIME}/test_lanes_deadlines.py::test_a_batch_is_cancelled_when_every_deadline_in_it_has_passed": _SLOW_MODEL,
    f"{_RUNTIME}/test_lanes_deadlines.py::test_a_running_call_is_cancelled_when_its_deadline_passes": _SLOW_MODEL,
    f"{_RUNTIME}/test_lanes_stress.py::test_every_caller_gets_its_own_answer_under_batching_*": (
        "thousands of calls with deadlines in milliseconds: minutes under emulation"
    ),
    f"{_RUNTIME}/test_residency.py::test_many_blocks_of_weights_go_back_to_the_system_as_well": _MEMORY,
    f"{_RUNTIME}/test_residency_waiting.py::test_an_event_that_is_not_taken_stops_nothing": _MEMORY,
    f"{_RUNTIME}/test_session_running.py::test_a_run_is_cancelled_from_another_thread": _SLOW_MODEL,
    f"{_RUNTIME}/test_session_running.py::test_memory_of_a_large_batch_comes_back": _MEMORY,
    f"{_RUNTIME}/test_tuning.py::test_a_real_model_is_measured_by_turns_within_its_budget": _QUICK,
    "tests/agent/test_batch.py::test_memory_does_not_grow_with_the_file": _MEMORY,
    "tests/agent/test_batch_resume.py::test_a_killed_process_goes_on_and_an_interrupted_one_says_how": _SLOW_MODEL,
    "tests/agent/test_cli.py::test_*_told": _PROCESSES,
}
