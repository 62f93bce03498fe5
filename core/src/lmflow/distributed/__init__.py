"""A run in several processes: how they are started, how they talk to one another, how they end together."""
