"""How a device gets its identity, and keeps it: a key that never leaves it, a request, a certificate, its renewal."""
