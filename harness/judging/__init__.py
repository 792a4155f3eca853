"""What records say of each other: comparisons, tables, expectations, exports."""
