"""Attacks on an update: whatever a server, a broker or a thief of one key sends, the incumbent answers on.

In every test an application asks for digits all the time: each of its answers must be the incumbent's own numbers.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator

import msgspec
import pytest

from fleet_protocol.envelope import DESIRED_TYPE, MANIFEST_TYPE, sign_envelope
from fleet_protocol.manifest import encode_manifest
from fleet_protocol.messages import Assignment, Desired, EventKind, Phase, encode
from tests.end_to_end.updates.bundles import MODEL, Bundle, Keys, sign
from tests.end_to_end.updates.device import Caller, who_answered
from tests.end_to_end.updates.scene import Scene

_ANSWERS_AFTER = 5


@contextlib.contextmanager
def only_the_incumbent_answers(scene: Scene) -> Iterator[None]:
    """Around an attack: every answer during it and after it is 1.0.0's."""
    with Caller(scene.device) as caller:
        yield
        caller.wait_for_more(_ANSWERS_AFTER)
    for answer in caller.answers:
        who_answered(answer, scene.versions.old)


def _flip(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize(
    ("tamper", "error"),
    [
        pytest.param(_flip, "has the digest .* tampered", id="a flipped bit in the model file"),
        pytest.param(lambda content: content[:-1], "has .* its manifest promises", id="a truncated model file"),
        pytest.param(lambda content: content + b"\0", "more than the .* promised", id="one byte too many"),
        pytest.param(lambda content: content + bytes(50_000_000), "more than the .* promised", id="a flood of bytes"),
        pytest.param(lambda _: b"", "has 0 bytes, its manifest promises", id="an empty model file"),
    ],
)
def test_a_tampered_model_file_never_runs(scene: Scene, tamper: Callable[[bytes], bytes], error: str) -> None:
    new = scene.versions.new
    scene.artifacts.serve({new.model_sha256: tamper(new.files[new.model_sha256])})
    try:
        with only_the_incumbent_answers(scene):
            scene.director.assign(new)
            _require_failed(scene, new, Phase.FAILED, error)
    finally:
        scene.artifacts.serve(new.served())


def test_a_tampered_envelope_never_runs(scene: Scene) -> None:
    new = scene.versions.new
    scene.artifacts.serve({new.digest: _flip(new.envelope)})
    try:
        with only_the_incumbent_answers(scene):
            scene.director.assign(new)
            _require_failed(scene, new, Phase.FAILED, "has the digest .* tampered")
    finally:
        scene.artifacts.serve(new.served())


def _by_a_stranger(keys: Keys, new: Bundle) -> Bundle:
    return sign(new.manifest, new.files, (keys.stranger,))


def _by_one_of_two(keys: Keys, new: Bundle) -> Bundle:
    return sign(new.manifest, new.files, (keys.release[0], keys.stranger))


def _by_one_key_twice(keys: Keys, new: Bundle) -> Bundle:
    return sign(new.manifest, new.files, (keys.release[0], keys.release[0]))


def _by_the_director(keys: Keys, new: Bundle) -> Bundle:
    return sign(new.manifest, new.files, (keys.director, keys.release[0]))


def _not_signed(_: Keys, new: Bundle) -> Bundle:
    return sign(new.manifest, new.files, ())


def _with_signatures_of_another_manifest(keys: Keys, new: Bundle) -> Bundle:
    other = msgspec.json.decode(sign(msgspec.structs.replace(new.manifest, licence="x"), {}, keys.release).envelope)
    mixed = {**msgspec.json.decode(new.envelope), "signatures": other["signatures"]}
    return Bundle(manifest=new.manifest, envelope=msgspec.json.encode(mixed), files=new.files)


def _as_another_type(keys: Keys, new: Bundle) -> Bundle:
    envelope = sign_envelope(DESIRED_TYPE, encode_manifest(new.manifest), keys.release)
    return Bundle(manifest=new.manifest, envelope=envelope, files=new.files)


def _no_envelope(_: Keys, new: Bundle) -> Bundle:
    return Bundle(manifest=new.manifest, envelope=encode_manifest(new.manifest), files=new.files)


_TOO_FEW = "valid signatures by trusted keys, 2 needed"


@pytest.mark.parametrize(
    ("forge", "error"),
    [
        pytest.param(_not_signed, f"0 {_TOO_FEW}", id="unsigned"),
        pytest.param(_by_a_stranger, f"0 {_TOO_FEW}", id="signed by an unknown key"),
        pytest.param(_by_one_of_two, f"1 {_TOO_FEW}", id="threshold not met"),
        pytest.param(_by_one_key_twice, f"1 {_TOO_FEW}", id="one key signing twice"),
        pytest.param(_by_the_director, f"1 {_TOO_FEW}", id="a stolen director key"),
        pytest.param(_with_signatures_of_another_manifest, f"0 {_TOO_FEW}", id="signatures of another manifest"),
        pytest.param(_as_another_type, "holds .*desired", id="a manifest typed as a desired state"),
        pytest.param(_no_envelope, "not a signed envelope", id="a bare manifest"),
    ],
)
def test_a_manifest_without_enough_release_signatures_is_rejected(
    scene: Scene, forge: Callable[[Keys, Bundle], Bundle], error: str
) -> None:
    forged = forge(scene.keys, scene.versions.new)
    scene.artifacts.serve({forged.digest: forged.envelope})
    fetched_before = len(scene.artifacts.requested(forged.model_sha256))
    with only_the_incumbent_answers(scene):
        scene.director.assign(forged)
        _require_failed(scene, forged, Phase.REJECTED, error)
    assert len(scene.artifacts.requested(forged.model_sha256)) == fetched_before, "it fetched what it must not run"


@pytest.mark.parametrize(
    ("model", "version"),
    [
        pytest.param(MODEL, "1.2.0", id="of another version"),
        pytest.param("faces", "1.1.0", id="of another model"),
    ],
)
def test_a_good_bundle_offered_as_something_else_is_rejected(scene: Scene, model: str, version: str) -> None:
    new = scene.versions.new
    bundle = sign(msgspec.structs.replace(new.manifest, model=model, version=version), new.files, scene.keys.release)
    scene.artifacts.serve({bundle.digest: bundle.envelope})
    director = scene.director
    director.generation += 1
    assignment = Assignment(model=MODEL, version="1.1.0", bundle=bundle.digest)
    desired = director.desired(generation=director.generation)
    with only_the_incumbent_answers(scene):
        director.publish(director.signed(msgspec.structs.replace(desired, assignments=[assignment])))
        _require_failed(scene, bundle, Phase.REJECTED, f"holds {model} {version}, not the assigned {MODEL} 1.1.0")


def _require_failed(scene: Scene, bundle: Bundle, phase: Phase, error: str) -> None:
    """The phase and the error are reported and told by an event, and 1.0.0 is what runs."""
    report = scene.director.wait_for_end()
    assert report.phase is phase, report
    assert report.desired == bundle.digest
    assert re.search(error, report.error), report
    scene.director.wait_until_told(phase)
    told = next(event for event in scene.director.events() if event.phase is phase)
    assert (told.bundle, told.detail) == (bundle.digest, report.error)
    scene.require_agreement(scene.versions.old)


def _signed_by(*names: str) -> Callable[[Scene, Desired], bytes]:
    def envelope(scene: Scene, desired: Desired) -> bytes:
        keys = {"stranger": scene.keys.stranger, "release": scene.keys.release[0]}
        return scene.director.signed(desired, [keys[name] for name in names])

    return envelope


def _changed(**changes: object) -> Callable[[Scene, Desired], bytes]:
    return lambda scene, desired: scene.director.signed(msgspec.structs.replace(desired, **changes))


def _changed_after_signing(scene: Scene, desired: Desired) -> bytes:
    harmless = msgspec.json.decode(scene.director.signed(msgspec.structs.replace(desired, assignments=[])))
    harmful = msgspec.json.decode(scene.director.signed(desired))
    return msgspec.json.encode({**harmful, "signatures": harmless["signatures"]})


def _twice(scene: Scene, desired: Desired) -> bytes:
    again = msgspec.structs.replace(desired, assignments=[*desired.assignments, *desired.assignments])
    return scene.director.signed(again)


def _typed_as_manifest(scene: Scene, desired: Desired) -> bytes:
    return sign_envelope(MANIFEST_TYPE, encode(desired), [scene.keys.director])


def _of_a_later_schema(scene: Scene, desired: Desired) -> bytes:
    return scene.director.signed(msgspec.structs.replace(desired, schema=99))


@pytest.mark.parametrize(
    ("forge", "error"),
    [
        pytest.param(_changed(device="press-8"), "signed for device factory/press-8", id="for another device"),
        pytest.param(_changed(fleet="bakery"), "signed for device bakery/press-7", id="for another fleet"),
        pytest.param(_signed_by("stranger"), "0 valid signatures", id="by an unknown key"),
        pytest.param(_signed_by("release"), "0 valid signatures", id="by a release key"),
        pytest.param(_signed_by(), "0 valid signatures", id="unsigned"),
        pytest.param(_changed_after_signing, "0 valid signatures", id="changed after it was signed"),
        pytest.param(_typed_as_manifest, "holds .*manifest", id="typed as a manifest"),
        pytest.param(_of_a_later_schema, "schema 99", id="of a later schema"),
        pytest.param(_twice, "has the arm main twice", id="naming an arm twice"),
        pytest.param(lambda _, desired: encode(desired), "not a signed envelope", id="without an envelope"),
        pytest.param(lambda *_: b"\xff\x00garbage" * 99, "not a signed envelope", id="garbage"),
    ],
)
def test_a_forged_desired_state_changes_nothing(
    scene: Scene, forge: Callable[[Scene, Desired], bytes], error: str
) -> None:
    director, requests_before = scene.director, len(scene.artifacts.requests)
    envelope = forge(scene, director.desired(scene.versions.new, generation=director.generation + 1))
    with only_the_incumbent_answers(scene):
        director.publish(envelope)
        event = director.wait_for_event(EventKind.DESIRED_REFUSED)
    assert re.search(error, event.detail), event
    assert scene.device.state().generation == director.generation
    assert len(scene.artifacts.requests) == requests_before, "it fetched for a forged desired state"
    assert director.wait_for().phase is Phase.HEALTHY
    scene.require_agreement(scene.versions.old)
    director.assign(scene.versions.new)
    director.wait_for(Phase.HEALTHY)
    scene.require_agreement(scene.versions.new)


def test_a_replayed_older_generation_changes_nothing(scene: Scene) -> None:
    director, old, new = scene.director, scene.versions.old, scene.versions.new
    replayed = director.signed(director.desired(old, generation=1))
    director.assign(new)
    director.wait_for(Phase.HEALTHY)
    before = director.report_count
    with Caller(scene.device) as caller:
        director.publish(replayed)
        reported = director.wait_for_another_report(before)
        caller.wait_for_more(_ANSWERS_AFTER)
    assert reported.generation == 2
    assert caller.versions() == {new.version}
    scene.require_agreement(new)
    assert scene.device.state().generation == 2


def test_the_same_generation_with_other_contents_changes_nothing(scene: Scene) -> None:
    director = scene.director
    before, requests_before = director.report_count, len(scene.artifacts.requests)
    with only_the_incumbent_answers(scene):
        director.publish(director.signed(director.desired(scene.versions.new, generation=director.generation)))
        reported = director.wait_for_another_report(before)
    assert reported.generation == director.generation
    assert len(scene.artifacts.requests) == requests_before
    assert director.wait_for().phase is Phase.HEALTHY
    scene.require_agreement(scene.versions.old)
