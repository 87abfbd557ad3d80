"""The export of every item's neighbors to files and databases."""
