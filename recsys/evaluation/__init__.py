"""Ranking metrics, baselines, calibration, and the drift of embeddings between releases."""
