"""What the doctor sees of the machine: one function of figures for each judgement, and `machine_findings`, which reads.

A figure that the machine does not tell is said to be untold, never guessed.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Sequence
from pathlib import Path

import onnxruntime as ort
import psutil

from edge_agent.config import RuntimeSection
from edge_agent.doctor.findings import Finding, ok, warn
from edge_agent.doctor.service import service_findings
from edge_agent.runtime.cpu import MachineFacts, group_lineage, machine_facts
from edge_agent.runtime.session_settings import default_settings

MIN_AVAILABLE_BYTES = 64 * 1024 * 1024
MIN_AVAILABLE_SHARE = 0.1
MAX_SWAP_SHARE = 0.5
WARM_C = 80.0
MIN_FILES = 1024
_NO_LIMIT_BYTES = 1 << 60
_MB = 1_000_000
_SYS_CPU = Path("/sys/devices/system/cpu")
_PI_THROTTLED = Path("/sys/devices/platform/soc/soc:firmware/get_throttled")
_SYSTEMD = Path("/run/systemd/system")
_TIME_SYNCHRONISED = Path("/run/systemd/timesync/synchronized")


def machine_findings(runtime: RuntimeSection) -> list[Finding]:
    """Everything about the machine, with the sessions' settings and the reason of each."""
    machine = machine_facts()
    memory, swap = psutil.virtual_memory(), psutil.swap_memory()
    limit = memory_limit(self_cgroup=Path("/proc/self/cgroup"), root=Path("/sys/fs/cgroup"))
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    _, choices = default_settings(machine=machine, runtime=runtime)
    return [
        cpu_finding(machine),
        cores_finding(machine),
        memory_finding(total=memory.total, available=memory.available, limit=limit, budget=runtime.memory_budget_bytes),
        swap_finding(total=swap.total, used=swap.used),
        temperature_finding(_hottest_c()),
        throttling_finding(*throttled(_SYS_CPU, _PI_THROTTLED)),
        governor_finding(governors(_SYS_CPU)),
        ok("onnxruntime", f"{ort.__version__}, with {', '.join(ort.get_available_providers())}"),
        *(ok("session", f"{choice.setting}: {choice.value} ({choice.reason})") for choice in choices),
        files_finding(files),
        *service_findings(
            has_systemd=_SYSTEMD.is_dir(),
            in_service="INVOCATION_ID" in os.environ,
            watchdog_usec=os.environ.get("WATCHDOG_USEC", ""),
        ),
    ]


def cpu_finding(machine: MachineFacts) -> Finding:
    """What the CPU is, and whether its 8-bit products saturate."""
    fact = f"{machine.model_name}, {machine.signature}"
    if machine.int8_saturates:
        return warn(
            "cpu",
            f"{fact}: no VNNI, so u8s8 kernels would saturate silently; models are loaded with exact u8u8 kernels",
            "measure int8 against fp32 with `edge-agent bench`: int8 may be the slower one here",
        )
    return ok("cpu", fact)


def cores_finding(machine: MachineFacts) -> Finding:
    """How much of the machine this process may use."""
    fact = f"{machine.quota:g} of the host's {machine.host_cores} are usable here"
    if machine.quota < 1:
        return warn(
            "cores",
            f"{fact}: each run may be stopped until the next scheduling period",
            "give the container or service a whole core, for example CPUQuota=100%",
        )
    return ok("cores", fact)


def memory_finding(*, total: int, available: int, limit: tuple[int, int] | None, budget: int | None) -> Finding:
    """Whether models have room. `limit` is (the cgroup's, what is left of it), `budget` the config's; in bytes."""
    capacity, usable = (min(total, limit[0]), min(available, limit[1])) if limit is not None else (total, available)
    of = f"{capacity // _MB} MB" + (" (limited by the cgroup)" if capacity < total else "")
    fact = f"{usable // _MB} MB of {of} are free"
    if usable < max(MIN_AVAILABLE_BYTES, MIN_AVAILABLE_SHARE * capacity):
        return warn("memory", fact, "stop what is not needed, or set runtime.memory_budget_bytes so that models sleep")
    if budget is not None and budget > usable:
        return warn(
            "memory",
            f"{fact}, less than runtime.memory_budget_bytes, {budget // _MB} MB",
            f"set runtime.memory_budget_bytes to at most {usable // _MB * _MB}",
        )
    return ok("memory", fact)


def swap_finding(*, total: int, used: int) -> Finding:
    """Whether the machine lives from its swap."""
    if not total:
        return ok("swap", "none: a lack of memory ends processes, so keep runtime.memory_budget_bytes below the free")
    fact = f"{used // _MB} MB of {total // _MB} MB are used"
    if used > MAX_SWAP_SHARE * total:
        return warn("swap", fact, "free memory: a model in swap answers in seconds, and flash cards wear out")
    return ok("swap", fact)


def temperature_finding(hottest_c: float | None) -> Finding:
    """How warm the hottest sensor is."""
    if hottest_c is None:
        return ok("temperature", "this machine does not tell")
    if hottest_c >= WARM_C:
        return warn("temperature", f"{hottest_c:.0f} °C", "cool the device or lower lanes.max: it will throttle soon")
    return ok("temperature", f"{hottest_c:.0f} °C")


def throttling_finding(count: int | None, bits: int | None) -> Finding:
    """Whether heat or a weak supply slowed the CPU since boot; `bits` are a Raspberry Pi's."""
    if count is None and bits is None:
        return ok("throttling", "this machine does not tell")
    if bits:
        supply = bool(bits & 0x1_0001)
        return warn(
            "throttling",
            f"the firmware reports {bits:#x}: {'the supply was too weak' if supply else 'it was too hot'}",
            "use a stronger power supply and a short cable" if supply else "cool the device",
        )
    if count:
        return warn("throttling", f"heat slowed the CPU {count} times since boot", "cool the device or lower lanes.max")
    return ok("throttling", "none since boot")


def throttled(cpus: Path, pi: Path) -> tuple[int | None, int | None]:
    """(throttle events of all cores, a Raspberry Pi's bits), None where not told."""
    counts = [
        int(text)
        for file in cpus.glob("cpu[0-9]*/thermal_throttle/*_throttle_count")
        if (text := _line(file)).isdecimal()
    ]
    try:
        bits = int(_line(pi), 16)
    except ValueError:
        bits = None
    return (sum(counts) if counts else None), bits


def governor_finding(names: Sequence[str]) -> Finding:
    """Whether the frequency governor lets the CPU run fast."""
    if not names:
        return ok("frequency", "this machine has no governor to choose")
    fact = f"governor {', '.join(names)}"
    if "powersave" in names:
        return warn(
            "frequency",
            f"{fact}: runs may be several times slower than measured elsewhere",
            "set schedutil or performance: cpupower frequency-set -g schedutil",
        )
    return ok("frequency", fact)


def governors(cpus: Path) -> tuple[str, ...]:
    """The governors that are in use, sorted."""
    found = {_line(file) for file in cpus.glob("cpu[0-9]*/cpufreq/scaling_governor")}
    # intel_pstate calls its own, demand-driven one "powersave"
    drivers = {_line(file) for file in cpus.glob("cpu[0-9]*/cpufreq/scaling_driver")}
    if drivers & {"intel_pstate", "amd-pstate-epp"}:
        found = {"demand-driven" if name == "powersave" else name for name in found}
    return tuple(sorted(found - {""}))


def files_finding(limit: int) -> Finding:
    """Whether enough files may be open."""
    if limit != resource.RLIM_INFINITY and limit < MIN_FILES:
        return warn("files", f"only {limit} may be open at once", "raise the limit: LimitNOFILE=4096 in the service")
    return ok("files", f"{'any number' if limit == resource.RLIM_INFINITY else limit} may be open at once")


def is_time_synchronised() -> bool | None:
    """Whether systemd says that the clock was set by the network; None where it says nothing."""
    return True if _TIME_SYNCHRONISED.exists() else None


def memory_limit(*, self_cgroup: Path, root: Path) -> tuple[int, int] | None:
    """(limit, what is left of it) in bytes, of the tightest cgroup around this process, v2 and v1; None without one."""
    limits: list[tuple[int, int]] = []
    for line in _text(self_cgroup).splitlines():
        _, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if not controllers:
            folders, limit_name, used_name = group_lineage(root, group), "memory.max", "memory.current"
        elif "memory" in controllers.split(","):
            folders = group_lineage(root / "memory", group)
            limit_name, used_name = "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        for folder in folders:
            limit, used = _number(folder / limit_name), _number(folder / used_name)
            if limit is not None and limit < _NO_LIMIT_BYTES:
                limits.append((limit, max(0, limit - (used or 0))))
    return min(limits, key=lambda each: each[1], default=None)


def _number(file: Path) -> int | None:
    text = _line(file)
    return int(text) if text.isdecimal() else None


def _line(file: Path) -> str:
    return _text(file).strip()


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _hottest_c() -> float | None:
    try:
        sensors = psutil.sensors_temperatures()
    except (AttributeError, OSError):
        return None
    return max((reading.current for chip in sensors.values() for reading in chip), default=None)
