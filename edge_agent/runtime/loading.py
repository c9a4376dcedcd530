"""The one way from a model file to a warm model: everything that loads models for answering goes through here.

Order: facts of machine and file → settings by default → tuned settings where they are known → the graph, from the
cache where it is kept → the best provider → warm. Without a `cache_dir` nothing is remembered and no digest is
taken. Tuning itself takes seconds and is never part of a load: `tune_model` does it, whenever there is time.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnxruntime as ort
from msgspec import Struct
from numpy.typing import NDArray

from edge_agent.errors import ModelLoadError
from edge_agent.runtime.cpu import MachineFacts, machine_facts
from edge_agent.runtime.model_file import KnownDigests, quantizes
from edge_agent.runtime.providers import OpenedModel, ProviderFallback, open_on_best, provider_order
from edge_agent.runtime.session import Model, open_session, require_file
from edge_agent.runtime.session_settings import CPU_PROVIDER, Choice, SessionSettings, default_settings

if TYPE_CHECKING:
    from edge_agent.config import RuntimeSection
    from edge_agent.runtime.residency import Residency
    from edge_agent.runtime.tuning import TuningResult

TUNING_BUDGET_S = 3.0
"""How long `tune_model` measures one model."""
_GRAPHS, _TUNINGS = "graphs", "tunings"

Arrays = Mapping[str, NDArray[Any]]


class Loading(Struct, frozen=True, kw_only=True):
    """What every load on this device goes by: the [runtime] settings, the memory that models may take, and where
    optimised graphs and measurements are kept.
    """

    runtime: RuntimeSection
    residency: Residency
    cache_dir: Path | None


class LoadedModel(Struct, frozen=True, kw_only=True):
    """A warm model, the settings it runs with, the providers that could not run it, and how long loading took.

    `is_tuned` says that the settings were measured, `from_cache` that its graph was not rewritten again.
    """

    model: Model
    settings: SessionSettings
    fallbacks: tuple[ProviderFallback, ...]
    load_s: float
    is_tuned: bool = False
    from_cache: bool = False


def load_model(
    path: Path,
    *,
    runtime: RuntimeSection,
    cache_dir: Path | None,
    golden: Arrays | None = None,
    digest: str | None = None,
) -> LoadedModel:
    """Load and warm the model file `path` as `runtime` says.

    `golden` are inputs on which providers are compared with the CPU. `digest` is the file's sha256 where the caller
    has just checked it (for a file with all its weights inside). Raises ModelLoadError, InferenceError when it fails
    on zeros, and ConfigError for providers that are not here.
    """
    start = time.perf_counter()
    require_file(path)
    order = provider_order(runtime.providers, ort.get_available_providers())
    machine = machine_facts()
    settings, _ = file_settings(path, runtime=runtime, machine=machine)
    is_tuned = False
    if cache_dir is not None:
        digest = digest or _digest(path, cache_dir)
        tuned = _known_tuning(digest, settings, machine, cache_dir) if runtime.tune and digest else None
        if tuned is not None:
            settings, is_tuned = tuned.settings, True
    from_cache = False

    def open_model(wanted: SessionSettings) -> OpenedModel:
        nonlocal from_cache
        if cache_dir is not None and digest is not None and wanted.providers == (CPU_PROVIDER,):
            from edge_agent.runtime.graph_cache import GraphCache

            opened = GraphCache(folder=cache_dir / _GRAPHS).open(path, settings=wanted, digest=digest)
            session, used, from_cache = opened.session, opened.settings, opened.from_cache
        else:
            session, used = open_session(path, settings=wanted)
        model = Model.of_session(session, path=path, settings=used, digest=digest)
        return OpenedModel(model=model, started=model.providers, operators=model.operators_by_provider())

    best, fallbacks = open_on_best(settings, order=order, open_model=open_model, probe=golden)
    best.model.warm()
    return LoadedModel(
        model=best.model,
        settings=best.model.settings,
        fallbacks=fallbacks,
        load_s=time.perf_counter() - start,
        is_tuned=is_tuned,
        from_cache=from_cache and best.model.settings.providers == (CPU_PROVIDER,),
    )


def tune_model(
    path: Path, *, runtime: RuntimeSection, cache_dir: Path, golden: Arrays | None = None, budget_s: float | None = None
) -> TuningResult | None:
    """Measure the model on this CPU and remember the fastest settings for the next `load_model`.

    None when that is already known, or cannot be remembered. Raises ModelLoadError and InferenceError.
    """
    from edge_agent.runtime.tuning import KnownTunings, tune

    require_file(path)
    machine = machine_facts()
    base, _ = file_settings(path, runtime=runtime, machine=machine)
    digest = _digest(path, cache_dir)
    if digest is None or _known_tuning(digest, base, machine, cache_dir) is not None:
        return None
    result = tune(
        path,
        base=base,
        quota=machine.quota,
        budget_s=TUNING_BUDGET_S if budget_s is None else budget_s,
        inputs=golden,
        fixed_threads=bool(runtime.threads),
    )
    KnownTunings(folder=cache_dir / _TUNINGS).put(_tuning_key(digest, base, machine), result)
    return result


def file_settings(
    path: Path, *, runtime: RuntimeSection, machine: MachineFacts
) -> tuple[SessionSettings, tuple[Choice, ...]]:
    """The default settings for a model file, and the reason of each. Raises ModelLoadError for an unreadable file."""
    try:
        may_saturate = machine.int8_saturates and quantizes(path)
    except OSError as error:
        raise ModelLoadError(f"cannot read {path}: {error.strerror or error}") from None
    return default_settings(machine=machine, runtime=runtime, quantizes=may_saturate)


def _known_tuning(digest: str, base: SessionSettings, machine: MachineFacts, cache_dir: Path) -> TuningResult | None:
    from edge_agent.runtime.tuning import KnownTunings

    return KnownTunings(folder=cache_dir / _TUNINGS).get(_tuning_key(digest, base, machine))


def _tuning_key(digest: str, base: SessionSettings, machine: MachineFacts) -> str:
    from edge_agent.runtime.tuning import tuning_key

    return tuning_key(
        digest=digest,
        base=base,
        quota=machine.quota,
        signature=machine.signature,
        runtime_version=ort.get_version_string(),
    )


def _digest(path: Path, cache_dir: Path) -> str | None:
    try:
        return KnownDigests(folder=cache_dir).of(path)
    except OSError as error:
        raise ModelLoadError(f"cannot read {path}: {error.strerror or error}") from None
