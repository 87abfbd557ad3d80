"""Queries and their results: filters, search, reranking, one query at a time or in bulk."""
