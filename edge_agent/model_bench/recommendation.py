"""What to use, from what was measured: a pure function of the table, with its reason in words.

The least median at the smallest batch wins, but more threads must earn them (`allowed_ratio`: a thread is a core that
another call lacks), and another variant than the first must be 5 % faster, as it may be less accurate.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from edge_agent.model_bench.measuring import BenchRow
from edge_agent.runtime.tuning import allowed_ratio


class Recommendation(Struct, frozen=True, kw_only=True):
    """The variant and threads to use, the batch with the most items per second, why, and what to beware of."""

    variant: str
    threads: int
    best_batch: int
    reason: str
    warnings: tuple[str, ...]


def recommend(rows: Sequence[BenchRow]) -> Recommendation:
    """What to use of `rows`, of which there is at least one; the first row's variant and threads are the default."""
    smallest = min(row.batch for row in rows)
    alone = [row for row in rows if row.batch == smallest]
    fewest = min(row.threads for row in alone)
    default = next(row for row in alone if row.threads == fewest)
    best, best_margin = default, 1.0
    for row in alone:
        margin = row.p50_us / default.p50_us / allowed_ratio(fewest, row.threads)
        if row is not default and margin <= best_margin:
            best, best_margin = row, margin
    same = [row for row in rows if (row.variant, row.threads) == (best.variant, best.threads)]
    widest = max(same, key=lambda row: row.items_per_s)
    return Recommendation(
        variant=best.variant,
        threads=best.threads,
        best_batch=widest.batch,
        reason=_reason(best, default, alone, widest),
        warnings=tuple(_warnings(alone)),
    )


def _reason(best: BenchRow, default: BenchRow, alone: Sequence[BenchRow], widest: BenchRow) -> str:
    if best is not default:
        share = 1 - best.p50_us / default.p50_us
        text = f"p50 {best.p50_us:.0f} us, {share:.0%} less than {default.variant} with {default.threads} thread(s)"
    elif len(alone) > 1:
        others = min(row.p50_us for row in alone if row is not default)
        text = f"p50 {best.p50_us:.0f} us; the best other takes {others:.0f} us, which is not enough to change"
    else:
        text = f"p50 {best.p50_us:.0f} us; nothing else was measured"
    if widest.batch > best.batch:
        gain = widest.items_per_s / best.items_per_s
        text += f"; batches of {widest.batch} give {gain:.1f} times the items per second"
    return text


def _warnings(alone: Sequence[BenchRow]) -> list[str]:
    """int8 that loses to fp32 at the same threads and batch."""
    warnings = []
    for row in alone:
        floats = [other.p50_us for other in alone if not other.is_quantized and other.threads == row.threads]
        if row.is_quantized and floats and row.p50_us >= min(floats):
            warnings.append(
                f"{row.variant} (int8) takes {row.p50_us:.0f} us with {row.threads} thread(s), fp32 {min(floats):.0f}:"
                " on this CPU quantization costs speed"
            )
    return warnings
