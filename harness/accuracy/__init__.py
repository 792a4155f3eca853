"""Did this precision, or this engine, change the model? Baselines, and what is found by comparing with one.

`baseline` reads files and imports nothing heavy; `rows`, `divergence`, `matching`, `routing` and `suspects` compute
with torch and are imported in workers only.
"""
