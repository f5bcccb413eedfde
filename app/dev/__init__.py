"""Laptop mode: embedded PostgreSQL, the simulator and the service together. Production imports none of it."""
