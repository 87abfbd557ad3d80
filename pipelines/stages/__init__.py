"""The other stages of a run, one file each."""
