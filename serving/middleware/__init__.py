"""Middleware around every request: access control, rate limits, metrics, tracing, and logs."""
