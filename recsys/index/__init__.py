"""Embeddings, distances, and nearest-neighbor indexes: exact search and Annoy."""
