"""The search for the fastest variant that is right: what is tried, measured, judged and written down.

`search.py` drives; `workbench.py` builds and measures a candidate; `placement.py` and `accuracy.py` say which layers
stay in float, for speed and for accuracy; `choice.py` decides what ships; `journal.py` keeps it all for a resumption.
"""
