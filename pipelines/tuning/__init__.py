"""Hyperparameter tuning of the settings."""
