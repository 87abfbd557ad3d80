"""What a worker answers from: loaded releases, item changes, and the response cache."""
