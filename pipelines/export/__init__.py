"""Export of the neighbors of all items to files and databases."""
