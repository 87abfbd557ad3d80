"""Benchmarks, which are run on request. Speed is measured relative to plain code that does the same work."""
