"""A run: workers, the processes around them, their token ids, and what their machine went through meanwhile."""
