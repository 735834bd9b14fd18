"""Connections of clients over tcp: which are cut, and by what."""
