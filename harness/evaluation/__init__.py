"""Evaluation as the NKI-MoE contest does it, for every engine: benchmark report, score, score records, kernel FLOP ratio."""
