"""All stages in order: the nightly run, backfills, the run report, and notifications."""
