"""Tables on disk and in memory: interactions, catalog, sequences, item pairs, and their checks."""
