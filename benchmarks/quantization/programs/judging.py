"""The metrics of `quantize.metrics` for the peers' programs, which have no edgefleet: a test holds the two equal.

Greater is always better here: `mse` is one over the error, so that a relative drop is that of `Metric.keeps`.
"""

import numpy as np


def quality(metric, outputs, inputs, labels):
    """What a model earns: its first output and its first input, each `[n, ...]`, and the truth `[n]` or None."""
    if metric == "accuracy":
        return float((outputs.argmax(axis=1) == labels).mean())
    if metric == "auc":
        return area_under_curve(anomaly_scores(outputs, inputs), labels)
    if metric == "mse":
        target = inputs if labels is None else labels
        return 1.0 / float(np.square(outputs.astype(np.float64) - target.astype(np.float64)).mean())
    raise ValueError(f"unknown metric {metric}")


def by_sample(metric, outputs, inputs, labels):
    """The same for each sample, `[n]`: what a search may rank its samples by. For auc how far on the right side."""
    if metric == "accuracy":
        return (outputs.argmax(axis=1) == labels).astype(np.float64)
    if metric == "auc":
        return anomaly_scores(outputs, inputs) * np.where(labels == 1, 1.0, -1.0)
    target = inputs if labels is None else labels
    error = np.square(outputs.astype(np.float64) - target.astype(np.float64))
    return 1.0 / np.maximum(error.reshape(len(error), -1).mean(axis=1), 1e-12)


def anomaly_scores(outputs, inputs):
    """One number a sample: a single score, the error of a reconstruction, or the second of two classes' scores."""
    if outputs.size == len(outputs):
        return outputs.reshape(len(outputs)).astype(np.float64)
    if outputs.shape == inputs.shape:
        error = np.square(outputs.astype(np.float64) - inputs.astype(np.float64))
        return error.reshape(len(error), -1).mean(axis=1)
    return outputs[:, 1].astype(np.float64)


def area_under_curve(values, labels):
    """The chance that a positive sample scores above a negative one, ties half."""
    positives, negatives = values[labels == 1], np.sort(values[labels == 0])
    below = np.searchsorted(negatives, positives, side="left")
    at_most = np.searchsorted(negatives, positives, side="right")
    return float((below + at_most).sum() / (2 * len(positives) * len(negatives)))
