"""paredown."""
