"""A release on disk and its life cycle: runs, checks, promotion, history, and the MLflow registry."""
