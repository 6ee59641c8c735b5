"""Side by side with the tools that you would use instead: ``python -m benchmarks``."""
