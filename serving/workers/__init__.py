"""Supervisor and worker processes, and the loading of releases."""
