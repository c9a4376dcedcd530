"""The `edge-agent` command. Exit status: 0 done, 1 failed while running, 2 wrong arguments or config, 130 stopped."""

from __future__ import annotations

import argparse
import logging
import re
import signal
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from edge_agent.batch import command as batch_command
from edge_agent.config import AgentConfig, HttpSection, ModelSection, check_config, load_config
from edge_agent.enrolment.arguments import add_arguments as add_enrol_arguments
from edge_agent.errors import AgentError, ConfigError, UserError
from edge_agent.model_bench.arguments import add_arguments as add_bench_arguments
from edge_agent.version import AGENT_VERSION

_STOP_LOOK_S = 0.1
_HELP_CHARS = 100
_EXIT_OK, _EXIT_FAILED, _EXIT_USAGE = 0, 1, 2
_LOG = logging.getLogger("edge_agent")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(
        level=logging.DEBUG if options.verbose else logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    try:
        return int(options.command(options))
    except UserError as error:
        return _fail(error, _EXIT_USAGE)
    except AgentError as error:
        return _fail(error, _EXIT_FAILED)
    except KeyboardInterrupt:
        return _EXIT_OK


def _fail(error: AgentError, status: int) -> int:
    print(f"edge-agent: {error}", file=sys.stderr)  # noqa: T201 - the command's own output
    return status


class _Parser(argparse.ArgumentParser):
    """A parser that does not measure the terminal for every argument: half of the time to make one."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(formatter_class=partial(argparse.HelpFormatter, width=_HELP_CHARS), **settings)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="edge-agent", description="Run ONNX models on this device.")
    parser.add_argument("--version", action="version", version=f"edgefleet {AGENT_VERSION}")
    parser.add_argument("--verbose", action="store_true", help="log more")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="serve models locally, and join a fleet when the config says so")
    run.add_argument("--config", type=Path, metavar="FILE", help="the agent's TOML file")
    run.add_argument("--model", action="append", default=[], metavar="NAME=FILE.onnx", help="serve this ONNX file")
    run.add_argument("--http", metavar="HOST:PORT", help="local HTTP API, for example 127.0.0.1:8080")
    run.add_argument("--socket", type=Path, metavar="PATH", help="local HTTP API on a Unix socket")
    run.set_defaults(command=_run)

    infer = commands.add_parser("infer", help="run one inference and print the prediction as JSON")
    infer.add_argument("model", metavar="NAME=FILE.onnx")
    infer.add_argument(
        "inputs", metavar="INPUTS", help="a .npz or .json file of inputs by name, or - for JSON on stdin"
    )
    infer.set_defaults(command=_infer)

    batch = commands.add_parser("batch", help="score the rows of a .parquet, .csv or .npz file, or a folder of images")
    batch_command.add_arguments(batch)
    batch.set_defaults(command=_batch)

    bench = commands.add_parser("bench", help="measure a model on this device and recommend settings")
    add_bench_arguments(bench)
    bench.set_defaults(command=_bench)

    enrol = commands.add_parser("enrol", help="join a fleet with a token: make a key, get a certificate")
    add_enrol_arguments(enrol)
    enrol.set_defaults(command=_enrol)

    doctor = commands.add_parser("doctor", help="look for what would keep the agent from working well here")
    doctor.add_argument("--config", type=Path, metavar="FILE", help="look at what this config names, too")
    doctor.add_argument("--json", action="store_true", help="print one JSON object")
    doctor.set_defaults(command=_doctor)
    return parser


def _run(options: argparse.Namespace) -> int:
    from edge_agent.agent import Agent
    from edge_agent.service.supervision import Supervision
    from edge_agent.service.supervisor import Supervisor

    config = load_config(options.config) if options.config else AgentConfig()
    models = dict(config.models)
    for text in options.model:
        name, path = _model_argument(text)
        models[name] = ModelSection(path=path)
    config = check_config(replace(config, models=models, http=_http(config.http, options)))
    if not config.models and config.mqtt is None:
        raise ConfigError("nothing to run: give --model NAME=FILE.onnx or a --config with [models] or [mqtt]")
    stopped: list[int] = []  # not an Event: its lock may be held by the very thread that the handler interrupts
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda came, _: stopped.append(came))
    with Supervision(Supervisor.from_environment()) as supervision, Agent(config=config) as agent:
        if agent.http_port is not None:
            _LOG.info("local API on http://%s:%s", config.http.host, agent.http_port)
        if config.http.socket is not None:
            _LOG.info("local API on the socket %s", config.http.socket)
        supervision.serving(agent.what_is_stuck)
        while not stopped:
            time.sleep(_STOP_LOOK_S)
        supervision.stopping()
    return _EXIT_OK


def _infer(options: argparse.Namespace) -> int:
    from edge_agent.agent import Agent
    from edge_agent.local_api.encoding import describe_prediction, encode_json

    name, path = _model_argument(options.model)
    with Agent(models={name: path}) as agent:
        prediction = agent.infer(name, _read_inputs(options.inputs))
        sys.stdout.buffer.write(encode_json(describe_prediction(prediction)) + b"\n")
    return _EXIT_OK


def _batch(options: argparse.Namespace) -> int:
    _, path = _model_argument(options.model)
    return batch_command.run(options, path)


def _bench(options: argparse.Namespace) -> int:
    from edge_agent.model_bench.command import run

    return run(options, read_inputs=_read_inputs)


def _enrol(options: argparse.Namespace) -> int:
    from edge_agent.enrolment.command import run

    return run(options)


def _doctor(options: argparse.Namespace) -> int:
    from edge_agent.doctor import any_failed, as_json, as_text, examine

    findings = examine(options.config)
    text = as_json(findings).decode() if options.json else as_text(findings)
    print(text)  # noqa: T201 - the command's own output
    return _EXIT_FAILED if any_failed(findings) else _EXIT_OK


def _http(section: HttpSection, options: argparse.Namespace) -> HttpSection:
    if options.http:
        match = re.fullmatch(r"(?:\[([^\]]+)\]|([^:]*)):(\d{1,5})", options.http)
        if not match or int(match[3]) > 65_535:
            raise ConfigError(f"--http {options.http!r} is not HOST:PORT, for example 127.0.0.1:8080")
        section = replace(section, host=match[1] or match[2] or "127.0.0.1", port=int(match[3]))
    return replace(section, socket=options.socket) if options.socket else section


def _model_argument(text: str) -> tuple[str, Path]:
    name, separator, path = text.partition("=")
    if not separator or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name) or not path:
        raise ConfigError(f"--model {text!r} is not NAME=FILE.onnx, for example digits=digits.onnx")
    if not Path(path).is_file():
        raise ConfigError(f"--model {name}: there is no file {path}")
    return name, Path(path)


def _read_inputs(source: str) -> dict[str, Any]:
    import json
    import zipfile
    import zlib

    import numpy as np

    # what json, zipfile, zlib and numpy raise for text and archives that are not what their name says
    unreadable = (
        ValueError, TypeError, EOFError, MemoryError, RecursionError, RuntimeError, zipfile.BadZipFile, zlib.error
    )  # fmt: skip
    try:
        if source.endswith(".npz"):
            with np.load(source, allow_pickle=False) as arrays:
                return {name: arrays[name] for name in arrays.files}
        inputs = json.loads(sys.stdin.read() if source == "-" else Path(source).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the inputs {source}: {error.strerror or error}") from None
    except unreadable as error:
        raise ConfigError(f"the inputs {source} are not valid: {error}") from None
    if not isinstance(inputs, dict):
        raise ConfigError(f"the inputs {source} must be a JSON object of arrays by input name")
    return inputs


if __name__ == "__main__":
    sys.exit(main())
