"""Recipe files, their stages, and the command line."""
