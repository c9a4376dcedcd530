"""Machine vibration: an autoencoder that knows healthy bearings and shafts. README.md is the model card."""
