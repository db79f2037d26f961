"""Playing a policy: exactly N episodes from fixed seeds, at the end, while it trains, and to check a prior."""
