"""Tuning: search for better settings."""
