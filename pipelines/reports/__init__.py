"""HTML reports and plots of a run and of its data."""
