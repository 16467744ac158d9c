"""Latency as a cost: a table of what layers take on a device, measured inside whole networks, and plans by it."""
