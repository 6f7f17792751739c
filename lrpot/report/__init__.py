"""One HTML page about a run: what was fitted, how well, and where it fails."""
