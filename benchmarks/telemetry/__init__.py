"""What the benchmarks of the device's telemetry share."""
