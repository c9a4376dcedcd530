"""What the doctor sees of whom this device believes: keys or trust root, and whether the newest word is still good."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec

from edge_agent.config import AgentConfig, DeviceSection
from edge_agent.control.state import STATE_FILE, ControlState
from edge_agent.control.trust import KnownTime, RootChain, Trust
from edge_agent.doctor.findings import Finding, fail, ok, warn
from edge_agent.errors import ConfigError
from fleet_protocol.errors import KeyFileError
from fleet_protocol.keys import PublicKey
from fleet_protocol.messages import Desired
from fleet_protocol.root import KeyRule

WARN_BEFORE_NS = 60 * 86_400 * 10**9
"""How long before its end an operator wants to hear of a root's expiry."""


def trust_findings(config: AgentConfig, *, known_time: KnownTime | None = None) -> Iterator[Finding]:
    """The keys or the root that [trust] names, and why nothing new would begin now. Changes nothing on the disk."""
    section, device, data_dir = config.trust, config.device, config.data_dir
    if section is None or device is None or data_dir is None:
        return
    if section.root is None:
        yield from (key_finding("release key", file) for file in section.release_keys)
        yield from (key_finding("director key", file) for file in section.director_keys)
    time = known_time or KnownTime()
    word = _word_in_force(data_dir)
    try:
        chain = _chain(section.root, data_dir, device)
        director = None if chain else KeyRule(tuple(map(PublicKey.load, section.director_keys)), 1)
    except ConfigError as error:
        yield fail("trust", str(error), "nothing installs until then")
        return
    except KeyFileError:
        return  # told above
    now_ns = time.now_ns(word.issued_at_ns if word else 0)
    if chain is not None:
        yield _root_finding(chain, now_ns)
    if word is not None:
        trust = Trust(fleet=device.fleet, device=device.id, director=director, chain=chain, known_time=time)
        why = trust.held_back(word)
        if why:
            yield warn("trust", f"nothing new begins: {why}", "tell the operator; what runs goes on")
        else:
            yield ok("trust", f"the desired state of generation {word.generation} is fresh")


def key_finding(what: str, file: Path) -> Finding:
    """Whether a public key can be read."""
    try:
        return ok("trust", f"{what} {PublicKey.load(file).key_id[:16]}")
    except (KeyFileError, OSError) as error:
        return fail(
            "trust", f"{what} {file}: {error}", "copy the key from the operator again; nothing installs until then"
        )


def _chain(pinned: Path | None, data_dir: Path, device: DeviceSection) -> RootChain | None:
    if pinned is None:
        return None
    return RootChain(data_dir / "roots", pinned=pinned, fleet=device.fleet)


def _root_finding(chain: RootChain, now_ns: int) -> Finding:
    newest = chain.newest
    fact = f"trust root {newest.version} of the fleet {newest.fleet}"
    if chain.is_broken:
        return warn("trust", f"{fact}; root {chain.seen_version} is damaged on this disk", "let it reach the server")
    days = (newest.expires_ns - now_ns) // (86_400 * 10**9)
    if now_ns >= newest.expires_ns:
        return warn("trust", f"{fact} expired {-days} days ago", "ask the operator for the next root (fleet keys root)")
    if newest.expires_ns - now_ns < WARN_BEFORE_NS:
        return warn("trust", f"{fact} expires in {days} days", "tell the operator: fleet keys root rotate")
    return ok("trust", f"{fact}, good for {days} days")


def _word_in_force(data_dir: Path) -> Desired | None:
    try:
        raw = (data_dir / "control" / STATE_FILE).read_bytes()
        return msgspec.json.decode(raw, type=ControlState).desired
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
