"""KServe's own REST client, unmodified."""

from __future__ import annotations

import pytest

from tests.conformance import checks
from tests.conformance.client_environments import environment
from tests.conformance.conftest import Served

PROGRAM = "kserve_checks.py"


@pytest.fixture(scope="module")
def results(served: Served) -> dict[str, str | None]:
    return checks.run(environment("kserve") / "python", PROGRAM, served.address, served.cases)


@pytest.mark.parametrize("name", checks.names_in(PROGRAM))
def test_kserve(results: dict[str, str | None], name: str) -> None:
    assert results[name] is None, results[name]
