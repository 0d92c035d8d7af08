"""What a run needs to know about images before it trains on them: sizes, errors, duplicates."""
