"""Commands of the pipeline: the nightly run, backfill, single stages, tuning and export."""
