"""The log as its readers know it: blocks, the batches in them, and how a folder of them is read.

The service that writes the log is `services/wal`. May import the root of `common` and `kernels`.
"""
