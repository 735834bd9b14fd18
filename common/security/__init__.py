"""Keys, encryption, and who is let in.

May import the root of `common`, the names of functions and `settings`.
"""
