"""Contract suites, synthetic data, small releases and scenarios that tests and benchmarks share."""
