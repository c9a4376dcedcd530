"""Every error the agent raises. The second level says who must act.

`retryable` tells a caller whether the same call may succeed later without anybody changing anything.
"""

from __future__ import annotations


class AgentError(Exception):
    """The root of every error the agent raises on purpose."""

    retryable = False


class UserError(AgentError):
    """The calling application, or whoever wrote the config, must act."""


class ConfigError(UserError):
    """A setting is unknown, of the wrong type, out of range, or names a file that is not there."""


class UnknownModelError(UserError):
    """No model of that name is loaded."""


class InvalidInputError(UserError):
    """An input is missing, unknown, or of the wrong shape or type."""


class UnknownPredictionError(UserError):
    """A prediction id was not made by an edgefleet agent."""


class ModelLoadError(UserError):
    """A file is not a model that ONNX Runtime can load here."""


class InferenceError(AgentError):
    """ONNX Runtime failed while running a loaded model."""


class ModelHungError(InferenceError):
    """A run of the model took longer than any may: the model was taken back."""


class OperatorError(AgentError):
    """The fleet's operator must act: what was sent must not, or cannot, run here."""


class DesiredRefusedError(OperatorError):
    """A desired state is unsigned, for another device, replayed, or not understood."""


class BundleRefusedError(OperatorError):
    """A bundle is unsigned, incompatible, does not fit, or is in quarantine."""


class ArtifactCorruptError(OperatorError):
    """A downloaded file does not have the digest or size that its manifest promises."""


class GoldenMismatchError(OperatorError):
    """A model's outputs on its golden vectors are not those it was shipped with."""


class NetworkError(AgentError):
    """The network or a server is away; the agent tries again by itself."""

    retryable = True


class EnrolmentRefusedError(OperatorError):
    """The fleet server did not give this device an identity, or did not renew it."""


class ServerAwayError(NetworkError):
    """The fleet server could not be asked."""


class DownloadError(NetworkError):
    """A download did not finish within its retries."""


class OverloadedError(AgentError):
    """The agent has as much work as it accepts; `retry_after_s` is when it expects to have room."""

    retryable = True

    def __init__(self, message: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class DeadlineExceededError(AgentError):
    """A call was not answered within the time its caller gave it; it was taken from the queue, or cancelled."""

    retryable = True


class MemoryBudgetError(OperatorError):
    """A model does not fit into the memory that the agent may use for models."""


class WouldWaitError(Exception):
    """A call with `may_wait=False` would have had to wait: ask again where waiting is allowed."""
