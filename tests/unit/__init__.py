"""Tests of single rooms: pure code by tables and by chance, the client of K-Pay against real sockets."""
