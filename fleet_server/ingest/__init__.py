"""From the message bus to the telemetry store and the fleet's state, acknowledged after commit."""
