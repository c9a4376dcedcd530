"""Drift that is put in is there: as far, on the devices, from the time that were asked for; bad plans are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner

from fleet_protocol.bins import OVER, UNDER
from fleet_protocol.embedding_sums import FEATURE_SCALE, decode_sums
from fleet_protocol.messages import Window
from fleet_server.cli import app
from fleet_server.errors import InvalidRequestError
from fleet_server.simulator import Drift, DriftKind, read_drifts
from tests.server.simulator.fleets import MONDAY_NS, S, day_of, device_means, fleet, sketch


def drifted(option: str, *, devices: int = 60, days: float = 0.5, **settings: Any) -> list[Window]:
    return day_of(fleet(devices, drifts=read_drifts([option]), **settings), days=days)


def accuracy(windows: list[Window]) -> tuple[float, float]:
    """(by outcomes, by confidence)."""
    known = [window.outcomes for window in windows if window.outcomes]
    sure = [window.estimated_accuracy for window in windows if window.estimated_accuracy]
    return (
        sum(one.correct for one in known) / sum(one.correct + one.wrong for one in known),
        sum(one.confidence_sum for one in sure) / sum(one.count for one in sure),
    )


@pytest.mark.parametrize("by", [0.8, -0.5])
def test_a_feature_moves_by_so_many_standard_deviations_and_out_of_the_reference_s_range(by: float) -> None:
    plain = device_means(day_of(fleet(), days=0.5), "std")
    windows = drifted(f"feature_shift:feature=std,by={by}")
    moved = device_means(windows, "std")
    assert np.mean([moved[name] - plain[name] for name in plain]) == pytest.approx(by, abs=0.3 * abs(by))
    beyond = np.sum([sketch(window, "std").outside for window in windows], axis=0)
    assert beyond[OVER if by > 0 else UNDER] > 100
    assert beyond[UNDER if by > 0 else OVER] == 0
    other = device_means(windows, "mean")
    assert abs(np.mean(list(other.values()))) < 0.1


def test_noise_widens_a_feature_and_moves_it_nowhere() -> None:
    plain, noisy = day_of(fleet(), days=0.5), drifted("feature_noise:feature=std,by=1")
    outside = [sum(int(sketch(window, "std").outside[:2].sum()) for window in windows) for windows in (plain, noisy)]
    assert outside[0] == 0
    assert outside[1] > 0.02 * sum(window.count for window in noisy)
    assert abs(np.mean(list(device_means(noisy, "std").values()))) < 0.1


def test_only_a_share_of_the_devices_at_a_site_moves_and_only_from_its_time_on() -> None:
    windows = drifted("feature_shift:feature=brightness,by=3,site=lisbon,share=0.5,after_s=21600", devices=200)
    site = {name: labels["site"] for name, labels in fleet(200).labels().items()}
    early = [window for window in windows if window.end_ns <= MONDAY_NS + 6 * 3_600 * S]
    late = [window for window in windows if window.start_ns >= MONDAY_NS + 6 * 3_600 * S]
    assert max(device_means(early, "brightness").values()) < 1
    moved = {name for name, mean in device_means(late, "brightness").items() if mean > 1}
    assert {site[name] for name in moved} == {"lisbon"}
    assert 0.3 < len(moved) / sum(place == "lisbon" for place in site.values()) < 0.7


def test_a_gradual_drift_grows() -> None:
    windows = drifted("feature_shift:feature=mean,by=1,ramp_s=43200", spread=0.0)
    quarters = [
        device_means([w for w in windows if (w.end_ns - MONDAY_NS - 1) // (3 * 3_600 * S) == part], "mean")
        for part in range(4)
    ]
    means = [np.mean(list(quarter.values())) for quarter in quarters]
    assert means == sorted(means)
    assert means[0] < 0.25
    assert means[3] > 0.6


def test_a_class_that_is_gone_is_answered_no_more() -> None:
    classes = [window.classes for window in drifted("class_gone:class_index=3")]
    assert not any(3 in one for one in classes)
    assert any(4 in one for one in classes)


def test_less_sure_lowers_the_confidence_and_not_the_accuracy() -> None:
    usual, unsure = accuracy(day_of(fleet(), days=0.5)), accuracy(drifted("less_sure:by=1.5"))
    assert unsure[0] == pytest.approx(usual[0], abs=0.003)
    assert unsure[1] < usual[1] - 0.01


@pytest.mark.parametrize("known", [True, False])
def test_accuracy_falls_and_the_confidence_shows_it_only_where_it_knows(known: bool) -> None:
    usual = accuracy(day_of(fleet(), days=0.5))
    worse = accuracy(drifted(f"accuracy:by=0.1,known={'true' if known else 'false'}"))
    assert worse[0] == pytest.approx(usual[0] - 0.1, abs=0.01)
    assert worse[1] == pytest.approx(usual[1] - (0.1 if known else 0.0), abs=0.02)


def test_an_embedding_moves() -> None:
    def mean(windows: list[Window]) -> NDArray[np.float64]:
        sums = [decode_sums(window.embedding_sums) for window in windows if window.count]
        return np.asarray(np.sum(sums, axis=0) / sum(window.count for window in windows) / FEATURE_SCALE)

    usual, moved = mean(day_of(fleet(), days=0.2)), mean(drifted("embedding_shift:by=0.5", days=0.2))
    assert np.abs(moved - usual).mean() > 0.05


def test_a_plan_comes_from_a_file_of_either_kind(tmp_path: Path) -> None:
    expected = Drift(kind=DriftKind.FEATURE_SHIFT, feature="mean", by=0.5, where={"site": "lisbon"}, after_s=60)
    (tmp_path / "plan.json").write_bytes(msgspec.json.encode({"drifts": [expected]}))
    (tmp_path / "plan.toml").write_text(
        '[[drifts]]\nkind = "feature_shift"\nfeature = "mean"\nby = 0.5\nafter_s = 60\nwhere = {site = "lisbon"}\n'
    )
    short = "feature_shift:feature=mean,by=0.5,after_s=60,site=lisbon"
    for option in (str(tmp_path / "plan.json"), str(tmp_path / "plan.toml"), short):
        assert read_drifts([option]) == (expected,)


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("shift:by=1", "Invalid enum value"),
        ("feature_shift:by=1", "name its feature"),
        ("less_sure:feature=mean", "has no feature"),
        ("feature_shift:feature=mean,by=lots", "Expected `float`"),
        ("feature_shift:feature=mean,by=99", "by is 99"),
        ("feature_shift:feature=mean,site", "is not name=value"),
        ("feature_shift:feature=mean,share=0", "share is 0"),
        ("feature_shift:feature=mean,after_s=-1", "after_s is -1"),
        ("feature_shift:feature=colour", "no bundle of the simulation has colour"),
        ("class_gone:class_index=10", "has class 10"),
        ("feature_shift:feature=mean,site=paris", "drift at site=paris"),
        ("/nowhere/plan.json", "cannot be read"),
    ],
)
def test_a_bad_plan_is_refused_with_what_is_wrong(option: str, said: str) -> None:
    with pytest.raises(InvalidRequestError, match=said):
        fleet(drifts=read_drifts([option]))


def test_a_plan_file_that_does_not_parse_is_named(tmp_path: Path) -> None:
    for name, text in (("a.json", "{"), ("b.toml", "drifts ="), ("c.json", '{"drifts": [{"kind": "x"}]}')):
        (tmp_path / name).write_text(text)
        with pytest.raises(InvalidRequestError, match=name):
            read_drifts([str(tmp_path / name)])
    (tmp_path / "long.json").write_text(" " * 70_000)
    with pytest.raises(InvalidRequestError, match="longer than"):
        read_drifts([str(tmp_path / "long.json")])
    with pytest.raises(InvalidRequestError, match="33 drifts"):
        read_drifts(["less_sure:by=1"] * 33)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--drift", "less_sure"], "give one with --bundle"),
        (["--site", "lisbon"], "NAME=HOURS"),
        (["--network", "late=3"], "unknown field"),
        (["--network", "late_share=3"], "use a share from 0 to 1"),
        (["--network", "dark_every_s=60"], "go together"),
        (["--network", "liar_share=0.1"], "liar_version"),
        (["--day-night", "traffic=2"], "day and night"),
    ],
)
def test_the_command_refuses_options_it_does_not_understand(options: list[str], said: str) -> None:
    result = CliRunner().invoke(app, ["simulate", "--mqtt-url", "mqtt://127.0.0.1:1", *options])
    assert isinstance(result.exception, InvalidRequestError)
    assert said in str(result.exception)
