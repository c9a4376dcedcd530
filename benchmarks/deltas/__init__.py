"""What U6 measures: models trained further, quantized alike, and every way to send only what changed."""
