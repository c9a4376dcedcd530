"""`python -m benchmarks [ID ...] [--json]`: run benchmarks by id, all of them without one."""

from __future__ import annotations

import argparse
import json
import sys

from benchmarks import (
    d1_detection_power,
    d2_false_alarms,
    d3_peers_false_alarms,
    d4_window_bytes,
    d5_merged_percentiles,
    d6_telemetry_cpu,
    d7_drift_evaluation,
    http_stacks,
    local_soak,
    q1_variant_speed,
    q2_stock_quantization,
    q3_variant_accuracy,
    q4_quantization_peers,
    q5_bundle_download,
    r1_in_process,
    r2_oip_json_latency,
    r3_throughput,
    r4_binary_unix,
    r5_agent_memory,
    r6_start_time,
    r7_hot_swap,
    r8_many_models,
    r9_lane_scaling,
    r10_batch,
    serverless_cold_start,
    u1_harms_rolled_back,
    u2_false_aborts,
    u3_rival_rules,
    u4_rollout_scale,
    u5_crash_points,
    u6_delta_bytes,
)
from benchmarks.quantization.bundles import make_all_afresh

BENCHMARKS = {
    module.ID: module
    for module in (
        r1_in_process,
        r2_oip_json_latency,
        r3_throughput,
        r4_binary_unix,
        r5_agent_memory,
        r6_start_time,
        r7_hot_swap,
        r8_many_models,
        r9_lane_scaling,
        r10_batch,
        q1_variant_speed,
        q2_stock_quantization,
        q3_variant_accuracy,
        q4_quantization_peers,
        q5_bundle_download,
        d1_detection_power,
        d4_window_bytes,
        d6_telemetry_cpu,
        d7_drift_evaluation,
        d5_merged_percentiles,
        d2_false_alarms,
        d3_peers_false_alarms,
        u1_harms_rolled_back,
        u2_false_aborts,
        u3_rival_rules,
        u4_rollout_scale,
        u6_delta_bytes,
        u5_crash_points,
        serverless_cold_start,
        http_stacks,
        local_soak,
    )
}
"""A module with LONG runs only when it is asked for by name."""


def main() -> int:
    """Run what was asked for; 0 when every target holds, 1 when one does not, 2 for an unknown id."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure edgefleet beside its peers.")
    parser.add_argument(
        "ids",
        nargs="*",
        metavar="ID",
        help=", ".join(f"{i}: {m.TITLE}".replace("%", "%%") for i, m in BENCHMARKS.items()),
    )
    parser.add_argument("--json", action="store_true", help="one JSON object per benchmark")
    parser.add_argument("--fresh", action="store_true", help="Q1 to Q3: search for the zoo's bundles too")
    options = parser.parse_args()
    if options.fresh:
        make_all_afresh()
    unknown = [name for name in options.ids if name not in BENCHMARKS]
    if unknown:
        parser.error(f"unknown benchmark {unknown[0]!r}: there are {', '.join(BENCHMARKS)}")
    held = True
    for name in options.ids or [n for n, module in BENCHMARKS.items() if not hasattr(module, "LONG")]:
        result = BENCHMARKS[name].run()
        held = held and result.holds
        if options.json:
            print(json.dumps(result.as_json()), flush=True)
        else:
            verdict = "holds" if result.holds else "MISSED"
            print(
                f"{result.id}  {result.ratio} (target {result.target}, {verdict})  {result.title}\n    {result.figures}"
            )
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
