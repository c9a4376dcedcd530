"""Prediction ids that carry what an outcome needs, so that nothing has to be kept for them.

An id names the boot, a number, the model, version, variant and arm that predicted, and what was predicted.
An outcome can therefore come minutes or months later, after a swap, a reboot or a wiped disk, and is still
credited to the version and arm that made the prediction. It is an address, not a secret: only callers on
the device see it, and it authenticates nothing.
"""

from __future__ import annotations

import base64
import binascii

import msgspec
from msgspec import Struct

from edge_agent.errors import UnknownPredictionError
from fleet_protocol.names import ArmName, BootId, ModelName, VariantName, Version

_FORM = 1
_MAX_ID_CHARS = 2048
_MAX_LABEL_BYTES = 1024  # a longer label is left out: its outcomes are told by class index


class PredictionId(Struct, frozen=True, array_like=True):
    """The parts of an id. `predicted_class` is a class index; `predicted_value` a regression's value."""

    form: int
    boot_id: BootId
    number: int
    model: ModelName
    version: Version
    variant: VariantName
    arm: ArmName
    predicted_class: int | None = None
    predicted_label: str | None = None
    predicted_value: float | None = None


_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(PredictionId)


def encode_prediction_id(
    *,
    boot_id: str,
    number: int,
    model: str,
    version: str,
    variant: str,
    arm: str,
    predicted_class: int | None,
    predicted_label: str | None,
    predicted_value: float | None,
) -> str:
    """The id as URL-safe text."""
    if predicted_label is not None and len(predicted_label.encode()) > _MAX_LABEL_BYTES:
        predicted_label = None
    parts = PredictionId(
        _FORM, boot_id, number, model, version, variant, arm, predicted_class, predicted_label, predicted_value
    )
    return base64.urlsafe_b64encode(_ENCODER.encode(parts)).rstrip(b"=").decode("ascii")


def decode_prediction_id(text: str) -> PredictionId:
    """The parts of an id. Raises UnknownPredictionError for anything an agent did not write."""
    try:
        parts = _DECODER.decode(
            base64.b64decode(text[:_MAX_ID_CHARS] + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        )
    except (ValueError, binascii.Error, msgspec.DecodeError):
        raise UnknownPredictionError(f"{text[:80]!r} is not a prediction id of this agent") from None
    if parts.form != _FORM:
        raise UnknownPredictionError(f"prediction id form {parts.form} is newer than this agent: upgrade it")
    return parts
