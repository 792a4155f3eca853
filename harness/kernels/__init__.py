"""From tables of a trace to where the time went: taxonomy, ledger, ceiling, waterfall, and whether to believe it."""
