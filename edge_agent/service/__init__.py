"""The agent as a service: what it tells its supervisor (systemd), and whether it deserves to be kept running."""
