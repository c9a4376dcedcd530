"""Virtual devices that speak the real protocol, thousands per process: a load tool, and a fleet for tests.

Rooms, in the order in which they build on each other: `day_night`, `drift`, `network` (what can happen to a fleet),
`references` (what a bundle's reference makes of it), `behaviour` (all settings), `devices` (how devices differ),
`drawing` (what they did, by array), `machine` (what they run on). Two ways to run the same fleet:
`virtual_device` and `simulation` over MQTT in real time, `generator` as windows in virtual time.
"""

from fleet_server.simulator.behaviour import Behaviour, FleetBehaviour
from fleet_server.simulator.day_night import DayNight
from fleet_server.simulator.drift import Drift, DriftKind, read_drifts
from fleet_server.simulator.generator import VirtualFleet, simulate_windows
from fleet_server.simulator.network import Arrival, NetFaults, deliver
from fleet_server.simulator.simulation import Simulation, Summary
from fleet_server.simulator.virtual_device import VirtualDevice

__all__ = [
    "Arrival",
    "Behaviour",
    "DayNight",
    "Drift",
    "DriftKind",
    "FleetBehaviour",
    "NetFaults",
    "Simulation",
    "Summary",
    "VirtualDevice",
    "VirtualFleet",
    "deliver",
    "read_drifts",
    "simulate_windows",
]
