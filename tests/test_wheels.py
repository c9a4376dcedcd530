"""An ARM device installs edgefleet without a compiler: everything it needs comes as a wheel for it."""

from __future__ import annotations

from pathlib import Path

import pytest
from packaging.utils import parse_wheel_filename

from tests.arm64.requirements import (
    NoIndexError,
    UnresolvedError,
    Wheel,
    base_requirements,
    missing_from,
    resolve,
    target_environment,
)
from tests.real_servers.requirements import missing


def resolved(wanted: list[str], python: str, folder: Path) -> list[Wheel]:
    try:
        return resolve(wanted, python=python, folder=folder)
    except NoIndexError as error:
        missing("package index", str(error))


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_every_dependency_of_the_base_install_has_a_wheel_for_64_bit_arm(tmp_path: Path, python: str) -> None:
    wanted = base_requirements()

    wheels = resolved(wanted, python, tmp_path)

    assert len(wheels) >= len(wanted)
    for wheel in wheels:
        platforms = {tag.platform for tag in parse_wheel_filename(wheel.file)[3]}
        assert all(platform == "any" or platform.endswith("_aarch64") for platform in platforms), wheel.file
    assert any("aarch64" in wheel.file for wheel in wheels)  # what runs models is compiled: not all is plain Python


def test_a_package_without_a_wheel_for_the_device_is_noticed(tmp_path: Path) -> None:
    # published as source alone, in every version
    with pytest.raises(UnresolvedError, match="docopt"):
        resolved(["docopt==0.6.2"], "3.11", tmp_path)


def test_what_a_marker_asks_for_on_the_device_alone_is_not_overlooked() -> None:
    wheels = [
        Wheel(file="runtime-1.0-py3-none-any.whl", requires=('kernels; platform_machine == "aarch64"',)),
        Wheel(file="other-1.0-py3-none-any.whl", requires=('legacy; python_version < "3.12"', 'docs; extra == "docs"')),
    ]

    for_device = target_environment("3.13")

    assert missing_from(wheels, ["runtime", "other"], for_device) == ["kernels"]
    assert missing_from(wheels, ["other[docs]"], for_device) == ["docs"]
    assert missing_from(wheels, ["other"], target_environment("3.11")) == ["legacy"]
    assert missing_from(wheels, ["runtime>=2"], for_device) == ["runtime>=2"]
