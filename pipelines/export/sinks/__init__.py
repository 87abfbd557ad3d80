"""Sinks for exported neighbors."""
