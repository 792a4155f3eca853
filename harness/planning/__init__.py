"""From what was asked to cells and loads: what would run, what cannot, and why. Nothing is started here."""
