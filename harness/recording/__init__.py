"""What was measured, as records: metrics, conditions, rounds, files."""
