"""How one session is set up, and why: settings as data, chosen from facts, turned into ONNX Runtime's options.

Invariants: `default_settings` is a function of the machine, the model file and the config, reads nothing and is
numerically safe: no choice of it makes a kernel round or saturate more than the model's own arithmetic does. Each
choice comes with its reason as text. Every session has threads of its own: ONNX Runtime's pool of the process spins
for about 10 ms after each run, and 1.32 has no way to tell it not to from Python. Whatever changes the optimised
graph is in `graph_key`, and nothing else.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Any

import onnxruntime as ort
from msgspec import Struct
from msgspec.structs import replace

from edge_agent.errors import ConfigError

if TYPE_CHECKING:
    from edge_agent.config import RuntimeSection
    from edge_agent.runtime.cpu import MachineFacts

MAX_THREADS = 256
"""More intra-op threads than this is a mistake, not a machine."""
SPIN_BOUND_US = 200
"""How long a thread of a bounded spin looks for the next operator: the gap between two operators, not between calls."""
CPU_PROVIDER = "CPUExecutionProvider"
_SEVERITY_ERROR = 3


class Spinning(StrEnum):
    """What a session's further threads do between two operators: sleep, look for a moment, or look all the time."""

    OFF = "off"
    BOUNDED = "bounded"
    ON = "on"


class Int8Kernels(StrEnum):
    """How quantized operators run: by the kernels that the file asks for, by exact u8u8 ones, or in float."""

    NATIVE = "native"
    U8U8 = "u8u8"
    FLOAT = "float"


class Optimisation(StrEnum):
    """How much ONNX Runtime rewrites the graph while loading."""

    ALL = "all"
    EXTENDED = "extended"
    BASIC = "basic"
    NONE = "none"


class SessionSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that a session is created with.

    `arena` keeps freed memory for the next run: as much as the largest batch so far took, until `Model.shrink`.
    Without it every run asks the C library, and `mem_pattern` must be off, or each shape of input keeps a block.
    `bfloat16` lets ARM multiply matrices in bfloat16, which rounds. `kleidiai` are ARM's own kernels, which keep
    packed copies of weights. `insist` refuses a model of which the first provider cannot run every operator.
    """

    threads: int = 1
    spinning: Spinning = Spinning.OFF
    arena: bool = True
    mem_pattern: bool = True
    int8_kernels: Int8Kernels = Int8Kernels.NATIVE
    bfloat16: bool = False
    kleidiai: bool = True
    optimisation: Optimisation = Optimisation.ALL
    providers: tuple[str, ...] = (CPU_PROVIDER,)
    insist: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.threads <= MAX_THREADS:
            raise ConfigError(f"threads is {self.threads}: use 1 to {MAX_THREADS}")

    def graph_key(self) -> str:
        """The settings that change the optimised graph, as one line."""
        provider = self.providers[0] if self.providers else CPU_PROVIDER
        return f"{provider} {self.optimisation} {self.int8_kernels} bf16={int(self.bfloat16)}"


class Choice(Struct, frozen=True, kw_only=True):
    """One setting, what it was set to, and why."""

    setting: str
    value: str
    reason: str


def default_settings(
    *, machine: MachineFacts, runtime: RuntimeSection, quantizes: bool = True
) -> tuple[SessionSettings, tuple[Choice, ...]]:
    """The settings for a model on `machine`, and the reason of each.

    `quantizes` says whether the model may run on integer kernels.
    """
    threads = runtime.threads or 1
    int8 = Int8Kernels.U8U8 if machine.int8_saturates and quantizes else Int8Kernels.NATIVE
    settings = SessionSettings(threads=threads, int8_kernels=int8)
    return settings, (
        _threads_choice(threads, machine, runtime),
        Choice(setting="spinning", value=settings.spinning.value, reason="a spinning thread burns the core of another"),
        Choice(setting="arena", value="on", reason="without it each run may fault its memory in again"),
        _int8_choice(int8, machine, quantizes=quantizes),
        Choice(setting="optimisation", value=settings.optimisation.value, reason="rewritten once, kept in the cache"),
    )  # fmt: skip


def _threads_choice(threads: int, machine: MachineFacts, runtime: RuntimeSection) -> Choice:
    if runtime.threads:
        reason = f"runtime.threads says so; {machine.quota:g} cores are usable"
    else:
        reason = f"small models lose by more, and lanes use the {machine.quota:g} usable cores; measured where tuned"
    return Choice(setting="threads", value=str(threads), reason=reason)


def _int8_choice(int8: Int8Kernels, machine: MachineFacts, *, quantizes: bool) -> Choice:
    if int8 is Int8Kernels.U8U8:
        reason = "this CPU has no VNNI: its u8s8 kernels would saturate silently"
    elif machine.int8_saturates:
        reason = "this CPU has no VNNI, but the model has no integer kernels"
    else:
        reason = "8-bit products do not saturate on this CPU"
    return Choice(setting="int8 kernels", value=int8.value, reason=reason)


def in_float_instead(settings: SessionSettings) -> SessionSettings | None:
    """What to load with when the exact u8u8 kernels cannot be built: the same in float. None when that is no remedy."""
    if settings.int8_kernels is not Int8Kernels.U8U8:
        return None
    return replace(settings, int8_kernels=Int8Kernels.FLOAT)


_LEVELS = {
    Optimisation.ALL: "ORT_ENABLE_ALL",
    Optimisation.EXTENDED: "ORT_ENABLE_EXTENDED",
    Optimisation.BASIC: "ORT_ENABLE_BASIC",
    Optimisation.NONE: "ORT_DISABLE_ALL",
}


def session_options(settings: SessionSettings) -> Any:
    """`settings` as ONNX Runtime's SessionOptions: always sequential, errors only in its log."""
    options = ort.SessionOptions()
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.intra_op_num_threads = settings.threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _SEVERITY_ERROR
    options.enable_cpu_mem_arena = settings.arena
    options.enable_mem_pattern = settings.mem_pattern
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, _LEVELS[settings.optimisation])
    for key, value in _entries(settings):
        options.add_session_config_entry(key, value)
    return options


def _entries(settings: SessionSettings) -> list[tuple[str, str]]:
    spin = settings.spinning
    entries = [
        ("session.intra_op.allow_spinning", "0" if spin is Spinning.OFF else "1"),
        ("session.inter_op.allow_spinning", "0"),
    ]
    if spin is Spinning.BOUNDED:
        entries.append(("session.intra_op.spin_duration_us", str(SPIN_BOUND_US)))
    if settings.int8_kernels is Int8Kernels.U8U8:
        # makes u8s8 kernels, which would saturate silently, u8u8 while loading
        entries.append(("session.x64quantprecision", "1"))
    elif settings.int8_kernels is Int8Kernels.FLOAT:
        entries.append(("session.disable_quant_qdq", "1"))
    if settings.bfloat16:
        entries.append(("mlas.enable_gemm_fastmath_arm64_bfloat16", "1"))
    if not settings.kleidiai:
        entries.append(("mlas.disable_kleidiai", "1"))
    if settings.providers != (CPU_PROVIDER,):
        entries.append(("session.record_ep_graph_assignment_info", "1"))
    if settings.insist:
        entries.append(("session.disable_cpu_ep_fallback", "1"))
    return entries
