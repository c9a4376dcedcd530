"""Open Inference Protocol v2 over an `InferenceService`: JSON, binary tensors, system shared memory.

`endpoints.find` maps a path to what answers it; `local_api.routes` loads this package at the first /v2 request.
"""

from __future__ import annotations
