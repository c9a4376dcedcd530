"""Programs of other drift detectors, each run in an environment of its own with the requirements beside it."""
