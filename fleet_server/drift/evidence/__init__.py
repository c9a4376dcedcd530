"""Whether what was seen differs from what is expected by more than chance, and by how much. Pure functions of arrays.

Which function:

| seen | expected | counts in cells | embedding sums | correct and wrong answers |
|---|---|---|---|---|
| devices | the bundle's reference | `against_reference` | `embedding_against_reference` | `accuracy_against_expected` |
| devices | other devices | `between_devices` | `embedding_between_devices` | `accuracy_between_devices` |
| devices | the same devices, row by row | `paired_devices` | `embedding_paired_devices` | `accuracy_paired_devices` |
| one device's windows | the bundle's reference | `one_device` | `embedding_one_device` | |
| one device's windows | its own earlier windows | `one_device_over_time` | `embedding_one_device_over_time` | |

Rooms: `result` (what a test answers), `scores` (counts as a few numbers), `effects` (how far apart), `fleet` (devices
against the reference), `exchanging` (devices against devices), `values` (one device), `embedding`, `outcomes`,
`combining` (many signals, one stated rate).

Invariants, first to last:
1. the unit of inference is the device wherever there are several; values are the unit only within one device, and
   then what they depend on each other is estimated from its windows;
2. every device weighs the same, however much it saw;
3. a p-value is of one signal and one look; `adjusted_p_values` keeps the rate of a whole report;
4. nothing that could differ gives p = 1 and never an error; arrays that do not fit raise InvalidRequestError.
"""

from fleet_server.drift.evidence.combining import adjusted_p_values, holm
from fleet_server.drift.evidence.embedding import (
    EmbeddingSums,
    embedding_against_reference,
    embedding_between_devices,
    embedding_one_device,
    embedding_one_device_over_time,
    embedding_paired_devices,
)
from fleet_server.drift.evidence.exchanging import between_devices, paired_devices
from fleet_server.drift.evidence.fleet import (
    MIN_DEVICES,
    MIN_REFERENCE_VALUES,
    MIN_VALUES_PER_DEVICE,
    against_reference,
    compare_devices,
)
from fleet_server.drift.evidence.outcomes import (
    accuracy_against_expected,
    accuracy_between_devices,
    accuracy_paired_devices,
)
from fleet_server.drift.evidence.result import Evidence, e_value_of
from fleet_server.drift.evidence.scores import class_scores, moment_scores
from fleet_server.drift.evidence.values import MIN_VALUES, one_device, one_device_over_time

__all__ = [
    "MIN_DEVICES",
    "MIN_REFERENCE_VALUES",
    "MIN_VALUES",
    "MIN_VALUES_PER_DEVICE",
    "EmbeddingSums",
    "Evidence",
    "accuracy_against_expected",
    "accuracy_between_devices",
    "accuracy_paired_devices",
    "adjusted_p_values",
    "against_reference",
    "between_devices",
    "class_scores",
    "compare_devices",
    "e_value_of",
    "embedding_against_reference",
    "embedding_between_devices",
    "embedding_one_device",
    "embedding_one_device_over_time",
    "embedding_paired_devices",
    "holm",
    "moment_scores",
    "one_device",
    "one_device_over_time",
    "paired_devices",
]
