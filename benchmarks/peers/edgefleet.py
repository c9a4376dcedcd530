"""edgefleet as its README starts it: one command, no configuration file, nothing tuned."""

from __future__ import annotations

from benchmarks.peers.oip import oip_body, oip_scores
from benchmarks.peers.peer import Command, Configuration, Launch, Peer


def _command(launch: Launch) -> Command:
    return [
        launch.python, "-m", "edge_agent", "run",
        "--model", f"kws={launch.model}", "--http", f"127.0.0.1:{launch.port}",
    ]  # fmt: skip


EDGEFLEET = Peer(
    name="edgefleet",
    package="edgefleet",
    requirements=None,
    command=_command,
    path="/v2/models/kws/infer",
    body=oip_body,
    read_scores=oip_scores,
    configurations=(Configuration(name="defaults"),),
)
