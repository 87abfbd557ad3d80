"""Measurements that are run on request, as ratios against plain code."""
