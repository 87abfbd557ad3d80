"""Commands of the library: releases, queries and data."""
