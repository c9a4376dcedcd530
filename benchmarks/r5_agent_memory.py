"""R5: what an agent with one model, HTTP and MQTT costs over a bare ONNX Runtime process, in memory.

Both processes run the digits model at the same time. Proportional memory (PSS) is compared, which shares pages of
libraries among the processes that map them; resident memory (RSS), which counts every page the agent touches as its
own, is shown beside it. The agent is measured after a whole update over the fleet: download, verification,
probation, windows sent, predictions answered over HTTP.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import tomllib
import urllib.request
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import tomli_w

from benchmarks.result import Result
from fleet_protocol.bundle_folder import file_path, sign_bundle
from fleet_protocol.keys import PrivateKey
from fleet_server.cli.client import FleetClient, open_client
from fleet_server.cli.devices import write_agent_config
from fleet_server.cli.models import publish_bundle
from fleet_server.cli.starting import make_server_folder
from fleet_server.demo.processes import ChildProcess, accepts, free_port, wait_until

ID = "R5"
TITLE = "agent PSS - bare ONNX Runtime PSS, digits model, HTTP and MQTT on, over the allowance of 25 MB"
ALLOWANCE_KB = 25 * 1000
PREDICTIONS = 500

_ROOT = Path(__file__).parent.parent
_BUNDLE = _ROOT / "models" / "digits" / "bundles" / "1.1.0"
_BARE = """
import sys, time, numpy, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
session.run(None, {"image": numpy.zeros((1, 1, 8, 8), numpy.float32)})
print("ready", flush=True)
time.sleep(3600)
"""


def run() -> Result:
    """Start everything, measure, end everything."""
    with ExitStack() as opened:
        folder = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="edgefleet-r5-")))
        bare = _start_bare(folder, opened)
        agent = _start_agent(folder, opened)
        figures = {"bare_kb": memory_kb(bare.pid), "agent_kb": memory_kb(agent.pid)}
    over = figures["agent_kb"]["Pss"] - figures["bare_kb"]["Pss"]
    figures["over_kb"] = {"Pss": over, "Rss": figures["agent_kb"]["Rss"] - figures["bare_kb"]["Rss"]}
    ratio = round(over / ALLOWANCE_KB, 3)
    return Result(id=ID, title=TITLE, ratio=ratio, target="<= 1.0", holds=ratio <= 1.0, figures=figures)


def memory_kb(pid: int) -> dict[str, int]:
    """Rss, Pss and Pss_Anon of a process in kB, from /proc."""
    fields = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()[1:]:
        name, _, value = line.partition(":")
        fields[name] = int(value.split()[0])
    return {name: fields[name] for name in ("Rss", "Pss", "Pss_Anon")}


def _start_bare(folder: Path, opened: ExitStack) -> ChildProcess:
    manifest = json.loads((_BUNDLE / "manifest.json").read_bytes())
    model = file_path(_BUNDLE, manifest["variants"][0]["file"]["sha256"])
    command: list[str | Path] = [sys.executable, "-c", _BARE, model]
    bare = ChildProcess("bare", command, folder=folder)
    opened.callback(bare.stop)
    wait_until(lambda: "ready" in bare.log.read_text(), timeout_s=30, what="the bare process")
    return bare


def _start_agent(folder: Path, opened: ExitStack) -> ChildProcess:
    http, mqtt, local = free_port(), free_port(), free_port()
    made = make_server_folder(folder / "server", fleet="bench", host="127.0.0.1", http_port=http, mqtt_port=mqtt)
    serve: list[str | Path] = [sys.executable, "-m", "fleet_server.cli", "serve", "--config", made.config_file]
    server = ChildProcess("server", serve, folder=folder)
    opened.callback(server.stop)
    wait_until(lambda: accepts(http), timeout_s=30, what="the start of the server")
    client = opened.enter_context(open_client(f"http://127.0.0.1:{http}", made.api_key_file))
    config_file = write_agent_config(
        client.change("POST", "devices/bench-1/enrol", {"labels": {}}), folder / "agent.toml"
    )
    config = tomllib.loads(config_file.read_text())
    config |= {"telemetry": {"window_s": 1.0}, "http": {"port": local}}
    config_file.write_text(tomli_w.dumps(config))
    agent = ChildProcess("agent", [sys.executable, "-m", "edge_agent", "run", "--config", config_file], folder=folder)
    opened.callback(agent.stop)
    _roll_out(client, made.release_key, folder)
    for number in range(PREDICTIONS):
        _predict(local, number)
    wait_until(lambda: client.get("ingest")["windows"] >= 3, timeout_s=60, what="the arrival of windows")
    agent.require_running()
    return agent


def _roll_out(client: FleetClient, release_key: Path, folder: Path) -> None:
    bundle = shutil.copytree(_BUNDLE, folder / "bundle")
    sign_bundle(bundle, [PrivateKey.load(release_key)])
    publish_bundle(client, bundle)
    wait_until(lambda: bool(client.pages("devices")[0]["reported"]), timeout_s=60, what="the agent's first report")
    policy = {"stages": [{"percent": 100, "bake_s": 3600}], "probation": {"duration_s": 1.0, "min_inferences": 0}}
    client.change("POST", "rollouts", {"model": "digits", "version": "1.1.0", "policy": policy})

    def healthy() -> bool:
        models = client.pages("devices")[0]["reported"].get("models", [])
        return any(model["phase"] == "HEALTHY" for model in models)

    wait_until(healthy, timeout_s=60, what="the update of the agent")


def _predict(port: int, seed: int) -> None:
    image = np.random.default_rng(seed).integers(0, 17, (1, 1, 8, 8)).tolist()
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/predict",
        data=json.dumps({"model": "digits", "inputs": {"image": image}}).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        answer.read()
