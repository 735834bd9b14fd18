"""What an operator may choose, and the places where services meet because of it.

May import the root of `common` and `functions`.
"""
