"""Programs for Pythons that have no edgefleet: each has the requirements beside it and imports nothing of ours."""
