"""What the benchmarks of quantization (Q1 to Q5) share: the models with their data, bundles, timing, the peers."""
