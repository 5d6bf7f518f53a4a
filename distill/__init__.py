"""What a teacher says, and how a student learns it."""
