"""The model zoo: one folder per model with its recipe. Not in the wheel."""
