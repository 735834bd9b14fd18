"""What is measured of a service, how well it is, and how others get to know it.

May import the root of `common`, `settings`, `bus` and `view`.
"""
