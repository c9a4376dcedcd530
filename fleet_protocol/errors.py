"""Everything that can be wrong with what crosses the wire.

Invariant: a decoder either returns a whole, checked value or raises one of these; it never returns
half a message and never lets a library's own exception through.
"""

from __future__ import annotations


class ProtocolError(Exception):
    """The root: something received, or about to be sent, breaks the protocol."""


class InvalidName(ProtocolError):
    """A fleet, device, model or version name is not of the allowed form."""


class MalformedMessage(ProtocolError):
    """A payload does not decode to the message its topic promises."""


class UnsupportedSchema(ProtocolError):
    """A payload is of a later major schema than this release knows."""


class SketchError(ProtocolError):
    """A histogram or bin sketch is torn, or two sketches do not fit together."""


class SignatureError(ProtocolError):
    """Too few valid signatures by trusted keys: nothing in the envelope may be believed."""


class KeyFileError(ProtocolError):
    """A key file is missing, unreadable or not an Ed25519 key."""
