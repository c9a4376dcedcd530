"""Whole fleets of real processes, and what happens to them when parts are killed, cut off or hostile."""
