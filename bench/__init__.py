"""Measurements, each by one command. What they print holds for the machine they ran on: compare, do not quote."""
