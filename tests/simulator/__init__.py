"""The simulator's tests: the real application, over real HTTP, with a real listener."""
