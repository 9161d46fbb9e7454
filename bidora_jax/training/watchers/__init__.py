"""What looks at a run while it trains: drift, samples, trackers."""
