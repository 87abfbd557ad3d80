"""The stages of a run after prepare, one module each."""
