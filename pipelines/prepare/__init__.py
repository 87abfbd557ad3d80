"""The prepare stage: builds the catalog, the sequences and the pairs from interactions and items."""
