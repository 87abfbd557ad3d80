"""Commands of the service: `recsys serve` and `recsys keys`."""
