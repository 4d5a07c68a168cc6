"""Each runtime: what it builds, opens and runs."""
