"""Statistics over repeated runs: differences over seeds, claims, power, and rank correlations."""
