"""Offline scoring: the rows of a file or folder in, scores out, what could not be scored beside them.

`engine` runs a `job`: a source (`npz`, `csv_rows`, `parquet`, `images`) reads chunks, `scoring` runs them in batches
of the size that `sizing` finds, the `journal` keeps what is durable, `publishing` makes the output of it.
"""

from __future__ import annotations

from edge_agent.batch.engine import BatchProgress, BatchReport, score_file
from edge_agent.batch.job import BatchJob

__all__ = ["BatchJob", "BatchProgress", "BatchReport", "score_file"]
