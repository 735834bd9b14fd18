"""Machine code: functions over arrays that numba compiles, and where their code is kept.

May import the root of `common`.
"""
