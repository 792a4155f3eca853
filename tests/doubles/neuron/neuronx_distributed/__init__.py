"""Here for its name and version."""
