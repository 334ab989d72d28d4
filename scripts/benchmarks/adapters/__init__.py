"""One thin file per system around benchmarks.work. Run or loaded by that system, in its own environment."""
