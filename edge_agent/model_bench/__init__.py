"""`edge-agent bench`: how fast a model and its variants run on this device, and which settings to use."""
