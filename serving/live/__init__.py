"""Live state of a worker: loaded releases, item changes, and the response cache."""
