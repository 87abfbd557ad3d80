"""Apache Beam: the runner, its options, job servers, and worker pools."""
