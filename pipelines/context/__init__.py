"""Common parts of all stages: run context, readers, progress, time limit, and resource usage."""
