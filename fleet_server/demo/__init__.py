"""`fleet demo`: a whole fleet on one machine, with real processes, real models and a story to watch."""
