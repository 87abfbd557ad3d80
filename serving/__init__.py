"""HTTP service for similarity search."""
