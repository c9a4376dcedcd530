"""Merged series kept up to date: what must be merged again, who merges it, and how it is read."""
