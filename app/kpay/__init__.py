"""The one door to K-Pay: its codes, its words, its errors and the client that asks."""
