"""What every stage is given: configuration, readers, progress, time limit, and resource usage."""
