"""Commands of the batch jobs: the nightly run, single stages, tuning and export."""
