"""A table of numbers: gradient-boosted trees on thirty columns. README.md is the model card."""
