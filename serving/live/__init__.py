"""The releases that a worker has loaded, and the changes made to items since."""
