"""Inputs to outputs: sessions and their settings, lanes, the models that serve, and the memory they may take.

Nothing is imported here: an agent loads what it uses.
"""
