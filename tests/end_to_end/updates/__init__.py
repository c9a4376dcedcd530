"""Device updates end to end: a real agent process, a real Mosquitto, real HTTP downloads; crashes and attacks."""
