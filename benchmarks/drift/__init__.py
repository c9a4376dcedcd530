"""What the drift benchmarks share: the null fleet, and the peers' programs."""
