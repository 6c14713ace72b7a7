"""Measurements against bars; each module prints its own table (`python -m bench.encode`)."""
