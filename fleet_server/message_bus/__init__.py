"""The message bus: how the server hears devices and is heard by them."""

from fleet_server.message_bus.paho_bus import PahoBus
from fleet_server.message_bus.port import Incoming, MessageBus, Outgoing

__all__ = ["Incoming", "MessageBus", "Outgoing", "PahoBus"]
