"""Snapshots: balances and functions as of one transaction, in files.

May import the root of `common`, `kernels`, `wal` and `functions`.
"""
