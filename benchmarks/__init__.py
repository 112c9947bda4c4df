"""Speed, measured: `python -m benchmarks [part ...]` measures and writes benchmarks/README.md."""
