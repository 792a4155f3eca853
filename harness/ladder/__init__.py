"""The optimisation ladder: an engine's rungs one on another and one by one, beside plain eager."""
