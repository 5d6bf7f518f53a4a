"""What a task is, how well a model does it, and what it costs."""
