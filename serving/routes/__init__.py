"""Routes of the service and their error handlers."""
