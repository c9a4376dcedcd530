"""Which of twenty languages a short phrase is in: a two-layer byte transformer. README.md is the model card."""
