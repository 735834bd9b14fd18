"""A service: what all five have in common, from the core's duties to the process.

The top of `common`: may import all the rest of it.
"""
