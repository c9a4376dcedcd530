"""Features: one number per sample, extracted from a model's inputs to watch them for drift.

The same functions make the reference when a bundle is built and the live values on the device, so both
are the same quantity. Invariants, in the order they are checked:
1. a manifest that names an unknown extractor, a wrong parameter or an unfit input is refused before its
   model runs (`check_extractor`), never skipped in silence;
2. an extractor never changes its input and always answers float64 `[n]` for a batch of `n`;
3. a NaN or an infinity in a sample shows in that sample's value and in no other.
"""

from edge_agent.telemetry.features.extraction import EXTRACTORS, check_extractor, extract

__all__ = ["EXTRACTORS", "check_extractor", "extract"]
