"""Thin HTTP: what comes in is checked and handed down, what comes back is written out."""
