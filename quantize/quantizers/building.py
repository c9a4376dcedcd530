"""From a prepared model, a scheme and a calibration to the bytes of a candidate.

Order: equalise, smooth, calibrate again where that changed what activations reach, correct biases, quantize. The same
arguments and library versions give the same bytes. The search builds hundreds of candidates that differ in what they
exclude, so the corrected model and its calibration are remembered for the last few corrections.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Collection
from threading import Lock

from msgspec.structs import replace

from quantize.calibration import Calibration, calibrate
from quantize.corrections import bias_corrected, cross_layer_equalised, smoothed
from quantize.data import Inputs
from quantize.errors import QuantizationFailedError
from quantize.quantizers._quiet import quiet
from quantize.quantizers.dynamic import build_dynamic
from quantize.quantizers.half import build_float16
from quantize.quantizers.static import build_static
from quantize.quantizers.weight_only import build_weight_only
from quantize.scheme import Form, Scheme

MAX_REMEMBERED = 4
_STATIC = (Form.QDQ, Form.QOPERATOR)
_MAX_REASON_CHARS = 300


def build(
    prepared: bytes, scheme: Scheme, calibration: Calibration, *, excluded_nodes: Collection[str], inputs: Inputs
) -> bytes:
    """The model quantized by `scheme`, the nodes named in `excluded_nodes` left in float.

    `calibration` is that of `prepared` on `inputs` (`[n, ...]` by name), which corrections run again. The fp32 forms
    are `prepared` itself. Raises QuantizationFailedError, with the reason in one line, when it cannot be done.
    """
    if scheme.form in (Form.GIVEN, Form.FLOAT):
        return prepared
    try:
        with quiet():
            return _built(prepared, scheme, calibration, frozenset(excluded_nodes), inputs)
    except QuantizationFailedError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:_MAX_REASON_CHARS] or type(error).__name__
        raise QuantizationFailedError(f"this model cannot be made {scheme.name}: {reason}") from error


def _built(
    prepared: bytes, scheme: Scheme, calibration: Calibration, excluded: frozenset[str], inputs: Inputs
) -> bytes:
    model, statistics = _corrections(prepared, scheme, calibration, inputs)
    if scheme.form is Form.FLOAT16:
        return build_float16(model, excluded_nodes=excluded)
    if scheme.form is Form.DYNAMIC:
        return build_dynamic(model, scheme, excluded_nodes=excluded)
    if scheme.form is Form.WEIGHT_ONLY:
        return build_weight_only(model, scheme, excluded_nodes=excluded)
    if scheme.bias_corrected:
        # the float operators of the QDQ form still have the outputs that quantized operators no longer show
        model = bias_corrected(model, _quantizer(replace(scheme, form=Form.QDQ), statistics, excluded), inputs,
                               excluded_nodes=excluded)  # fmt: skip
    return _quantizer(scheme, statistics, excluded)(model)


def _quantizer(scheme: Scheme, statistics: Calibration, excluded: frozenset[str]) -> Callable[[bytes], bytes]:
    return lambda model: build_static(model, scheme, statistics, excluded_nodes=excluded)


def _corrections(
    prepared: bytes, scheme: Scheme, calibration: Calibration, inputs: Inputs
) -> tuple[bytes, Calibration]:
    """The model equalised and smoothed as the scheme says, and its own calibration where its form needs one."""
    if not scheme.equalised and not scheme.smoothing:
        return prepared, calibration
    is_static = scheme.form in _STATIC
    key = f"{hashlib.sha256(prepared).hexdigest()} {calibration.key} {scheme.equalised} {scheme.smoothing} {is_static}"
    known = _remembered.get(key)
    if known is not None:
        return known
    model = cross_layer_equalised(prepared) if scheme.equalised else prepared
    if scheme.smoothing:
        model = smoothed(model, calibration.channel_maxima, alpha=scheme.smoothing)
    if model == prepared:
        raise QuantizationFailedError(f"nothing in this model can be {_words(scheme)}: leave that out of the scheme")
    statistics = calibrate(model, inputs, seed=_SEED) if is_static else calibration
    _remembered.put(key, (model, statistics))
    return model, statistics


def _words(scheme: Scheme) -> str:
    return "equalised or smoothed" if scheme.equalised and scheme.smoothing else (
        "equalised" if scheme.equalised else "smoothed"
    )  # fmt: skip


class _Remembered:
    """The last MAX_REMEMBERED corrected models; safe to use from several threads."""

    def __init__(self) -> None:
        self._entries: OrderedDict[str, tuple[bytes, Calibration]] = OrderedDict()
        self._lock = Lock()

    def get(self, key: str) -> tuple[bytes, Calibration] | None:
        """The entry, which now is the latest."""
        with self._lock:
            found = self._entries.get(key)
            if found is not None:
                self._entries.move_to_end(key)
            return found

    def put(self, key: str, entry: tuple[bytes, Calibration]) -> None:
        """Keep the entry, and forget the oldest above the limit."""
        with self._lock:
            self._entries[key] = entry
            while len(self._entries) > MAX_REMEMBERED:
                self._entries.popitem(last=False)


_remembered = _Remembered()
_SEED = 0
