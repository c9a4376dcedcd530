"""Keeps the device's certificate good: renews it at the fleet server in good time, again and again until it works.

Invariants:
- due at two thirds of its life plus up to a twelfth, spread by its serial number, so that a fleet enrolled in one hour
  does not renew in one;
- also due, at most every REFUSED_PAUSE_S, when the broker keeps turning the device away: its clock may be wrong;
- each renewal has a new key; key and certificate are replaced in one rename, and used from the next connection on;
- a failure changes nothing: what is there is used on, also past its end, and tries back off with full jitter;
- nothing here waits for anybody: it is a thread of its own and needs no broker.
"""

from __future__ import annotations

import base64
import logging
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path

from edge_agent.enrolment.asking import ask
from edge_agent.enrolment.der import CertificateFacts
from edge_agent.enrolment.identity_file import Identity, NewKey, read_identity, write_identity
from edge_agent.errors import AgentError, ServerAwayError

_LOG = logging.getLogger(__name__)
LIFE_SHARE, SPREAD_SHARE = 2 / 3, 1 / 12
FIRST_PAUSE_S, MAX_PAUSE_S = 30.0, 6 * 3600.0
REFUSED_PAUSE_S = 6 * 3600.0
_LONGEST_WAIT_S = 3600.0
"""A clock that is set forward is noticed within this."""


def due_ns(certificate: CertificateFacts) -> int:
    """When the certificate is to be renewed (UTC ns)."""
    life_ns = certificate.expires_ns - certificate.begins_ns
    spread = int(certificate.serial[-8:], 16) / 2**32
    return certificate.begins_ns + int(life_ns * (LIFE_SHARE + SPREAD_SHARE * spread))


class CertificateKeeper:
    """Owns the identity file. `on_change` is called after it was replaced."""

    def __init__(
        self,
        *,
        path: Path,
        server_url: str,
        ca_file: Path | None,
        fleet: str,
        device: str,
        secret: str,
        on_change: Callable[[], None],
        first_pause_s: float = FIRST_PAUSE_S,
    ) -> None:
        self._path, self._url, self._ca_file = path, server_url, ca_file
        self._fleet, self._device, self._on_change = fleet, device, on_change
        self._authorization = "Basic " + base64.b64encode(f"{device}:{secret}".encode()).decode("ascii")
        self._first_pause_s = first_pause_s
        self._identity = self._read()
        self._refused, self._last_for_refusal_s = threading.Event(), float("-inf")
        self._stop, self._wake = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="certificate", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        if self._identity is not None:
            self._thread.start()

    def stop(self) -> None:
        """End; a question on its way is not waited for."""
        self._stop.set()
        self._wake.set()

    @property
    def expires_ns(self) -> int:
        """When the certificate ends, 0 where it is not ours to renew."""
        return self._identity.certificate.expires_ns if self._identity else 0

    def turned_away(self) -> None:
        """The broker refuses this device again and again."""
        self._refused.set()
        self._wake.set()

    def _read(self) -> Identity | None:
        try:
            return read_identity(self._path)
        except (OSError, ValueError) as error:
            _LOG.warning("the certificate %s is not renewed by itself: %s", self._path, error)
            return None

    def _run(self) -> None:
        failures = 0
        while not self._stop.is_set():
            wait_s = self._wait_s(time.time_ns(), time.monotonic())
            if wait_s > 0:
                self._wake.wait(min(wait_s, _LONGEST_WAIT_S))
                self._wake.clear()
                continue
            why = "is due"
            if self.expires_ns < time.time_ns():
                why = "has expired"
            elif self._refused.is_set():
                why = "is not accepted by the broker"
            if self._refused.is_set():
                self._refused.clear()
                self._last_for_refusal_s = time.monotonic()
            try:
                self._renew()
                failures = 0
            except (AgentError, OSError, ValueError, KeyError, TypeError) as error:
                failures += 1
                level = logging.WARNING if failures == 1 or not isinstance(error, ServerAwayError) else logging.DEBUG
                _LOG.log(level, "the certificate %s and was not renewed: %s", why, error)
                pause_s = min(MAX_PAUSE_S, self._first_pause_s * 2 ** min(failures - 1, 16))
                self._stop.wait(random.uniform(pause_s / 2, pause_s))

    def _wait_s(self, now_ns: int, now_s: float) -> float:
        if self._identity is None:
            return _LONGEST_WAIT_S
        until_due_s = (due_ns(self._identity.certificate) - now_ns) / 1e9
        if self._refused.is_set():
            return min(until_due_s, self._last_for_refusal_s + REFUSED_PAUSE_S - now_s)
        return until_due_s

    def _renew(self) -> None:
        assert self._identity is not None  # noqa: S101 - without one nothing is due
        new = NewKey.generate()
        csr = new.request(self._device)
        proof = self._identity.prove(fleet=self._fleet, device=self._device, csr=csr)
        answer = ask(
            self._url,
            f"/api/v1/devices/{self._device}/certificate",
            {"csr": csr, "serial": self._identity.certificate.serial, "proof": proof},
            authorization=self._authorization,
            ca_file=self._ca_file,
        )
        given = answer["certificate"]
        self._identity = write_identity(self._path, new, certificate_pem=given["pem"], chain=given["chain"])
        _LOG.info(
            "the certificate was renewed: good until %s", time.strftime("%Y-%m-%d", time.gmtime(self.expires_ns / 1e9))
        )
        self._on_change()
