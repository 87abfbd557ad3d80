"""Commands of the service: serve, and API keys."""
