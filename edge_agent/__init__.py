"""The light agent that runs on each device."""
