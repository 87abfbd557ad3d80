"""The first stage: interactions and items turned into catalog, sequences, and pairs."""
