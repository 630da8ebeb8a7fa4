"""A page about runs: what was trained, how it went, and what the network does under attack."""
