"""Floods: what a hostile peer may do, to a server on each of the loops, on loopback and within bounds."""
