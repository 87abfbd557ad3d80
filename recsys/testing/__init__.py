"""Contract suites, made-up data, small releases and test scenarios that tests and benchmarks share."""
