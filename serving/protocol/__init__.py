"""HTTP requests and responses: parsing, validation, problem details, and pagination."""
