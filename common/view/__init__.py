"""The pipeline as people look at it, in the terminal and on the page: made of what services tell.

May import the root of `common`.
"""
