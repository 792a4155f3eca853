"""Empty, as a package must have it."""
