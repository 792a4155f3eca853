"""Many cells from one file: read, expanded to rows, planned, shown."""
