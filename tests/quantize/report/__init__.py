"""The report of a search for people."""
