"""edgefleet on a 64-bit ARM, emulated: `make test-arm64` runs this package, docs/arm.md tells what it proves."""
