"""Everything that crosses the wire between devices and the fleet server, and nothing else.

Rooms: `topics` and `names` (what things are called), `messages` (what is said), `histogram` and `bins`
(what is summed), `manifest` (what is shipped), `envelope` and `keys` (who said so).
Imports only msgspec, numpy and PyNaCl.
"""
