"""Offline scoring: the rows of a file or folder in, scores out, what could not be scored beside them.

`engine` runs a `job`: a source (`npz`, `csv_rows`, `parquet`, `images`) reads chunks, `scoring` runs them in batches
of the size that `sizing` finds, the `journal` keeps what is durable, `publishing` makes the output of it. `command` is
`edge-agent batch`. Nothing is imported here: the command line loads no engine before it runs one.
"""
