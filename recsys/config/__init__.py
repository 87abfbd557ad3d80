"""Configuration: one frozen pydantic model per TOML table, and how the file and its overrides are loaded."""
