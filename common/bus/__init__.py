"""How services talk: sockets, messages, and the links that lose and double nothing.

May import the root of `common`, `functions`, `settings` and `security`.
"""
