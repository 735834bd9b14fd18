"""Keys, encryption, and who is let in.

May import the root of `common`, `functions` and `settings`.
"""
