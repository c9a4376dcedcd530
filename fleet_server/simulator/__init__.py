"""Virtual devices that speak the real protocol, thousands per process: a load tool, and a fleet for tests.

Rooms: `behaviour` (how versions do on devices), `virtual_device` (one device's words), `simulation` (all of them).
"""

from fleet_server.simulator.behaviour import Behaviour, FleetBehaviour
from fleet_server.simulator.simulation import Simulation, Summary
from fleet_server.simulator.virtual_device import VirtualDevice

__all__ = ["Behaviour", "FleetBehaviour", "Simulation", "Summary", "VirtualDevice"]
