"""R1: what `agent.infer` costs over ONNX Runtime's own `session.run`, in one process, with full telemetry.

MLPerf Tiny's `ad` (a run of some 20 us: the hardest case for what lies around it), real inputs, one thread. The
agent has a fleet (an outbox, windows of one second, a broker that is away) and a manifest with ten features, a
copy of whose inputs is sampled as on a device. Bare and agent calls alternate one by one, so that both see the
same machine; where in memory a session happens to lie moves its speed by a tenth, so several processes are
started, and the ratio is the median of theirs.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.real_models import mlperf_tiny_file
from benchmarks.result import Result

ID = "R1"
TITLE = "in-process agent.infer p50 over bare session.run p50, MLPerf Tiny ad, one thread, full telemetry"
PROCESSES = 9
CALLS = 20_000
WARM_UP = 2_000
TARGET = 1.10
FEATURES = 10


def run() -> Result:
    """Measure in several processes, one after the other."""
    rounds = [_in_a_process() for _ in range(PROCESSES)]
    ratio = round(statistics.median(entry["ratio"] for entry in rounds), 3)
    figures: dict[str, Any] = {
        "bare_p50_us": [entry["bare_p50_us"] for entry in rounds],
        "agent_p50_us": [entry["agent_p50_us"] for entry in rounds],
        "bare_p99_us": statistics.median(entry["bare_p99_us"] for entry in rounds),
        "agent_p99_us": statistics.median(entry["agent_p99_us"] for entry in rounds),
        "ratios": [entry["ratio"] for entry in rounds],
        "windows_closed": [entry["windows_closed"] for entry in rounds],
    }
    return Result(id=ID, title=TITLE, ratio=ratio, target=f"<= {TARGET}", holds=ratio <= TARGET, figures=figures)


def _in_a_process() -> dict[str, Any]:
    done = subprocess.run([sys.executable, "-m", __name__], check=True, capture_output=True, text=True)
    measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return measured


def measure() -> dict[str, Any]:
    """One process's figures."""
    import numpy as np
    import onnxruntime as ort

    model = mlperf_tiny_file("ad.onnx")
    rows = np.load(mlperf_tiny_file("ad_inputs.npy")).astype(np.float32)
    samples = [{"input_1": rows[index : index + 1].copy()} for index in range(len(rows))]
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    bare_ns, agent_ns = [], []
    with tempfile.TemporaryDirectory(prefix="edgefleet-r1-") as folder, _agent(Path(folder), model) as agent:
        for number in range(WARM_UP + CALLS):
            sample = samples[number % len(samples)]
            start = time.perf_counter_ns()
            session.run(None, sample)
            middle = time.perf_counter_ns()
            agent.infer("ad", sample)
            end = time.perf_counter_ns()
            bare_ns.append(middle - start)
            agent_ns.append(end - middle)
        time.sleep(1.5)  # the last window closes
        windows = agent.windows_closed
    bare, ours = (np.percentile(times[WARM_UP:], [50, 99]) / 1000 for times in (bare_ns, agent_ns))
    return {
        "ratio": float(ours[0] / bare[0]),
        "bare_p50_us": round(float(bare[0]), 2),
        "agent_p50_us": round(float(ours[0]), 2),
        "bare_p99_us": round(float(bare[1]), 1),
        "agent_p99_us": round(float(ours[1]), 1),
        "windows_closed": windows,
    }


def _agent(folder: Path, model: Path) -> Any:
    from edge_agent import Agent
    from edge_agent.config import AgentConfig, DeviceSection, MqttSection, TelemetrySection

    config = AgentConfig(
        data_dir=folder,
        device=DeviceSection(id="bench"),
        mqtt=MqttSection(url="mqtt://127.0.0.1:9"),  # the discard port: offline is a normal state
        telemetry=TelemetrySection(window_s=1.0),
    )
    agent = Agent(models={"ad": model}, config=config)
    _watch_features(agent)
    return agent


def _watch_features(agent: Any) -> None:
    """Give the model the references that a bundle's manifest would bring."""
    from fleet_protocol.manifest import FeatureReference

    edges = [float(edge) for edge in range(-32, 33)]
    features = tuple(
        FeatureReference(
            name=f"column_{index}",
            extractor="column",
            input="input_1",
            parameters={"index": float(index)},
            edges=edges,
            counts=[1] * 64,
        )
        for index in range(FEATURES)
    )
    for series in agent._recorder._series.values():
        series.watch(features, None)


if __name__ == "__main__":
    print(json.dumps(measure()))
