"""Orchestration of all stages: nightly runs, backfills, run reports, and notifications."""
