"""A whole network on one machine: its processes, its sample of real data, its load and its measurements."""
