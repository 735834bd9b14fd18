"""What two or more services share, and nothing else. May import none of our other packages.

Its own packages stand on one another. Each says what it may import, and
`tests/unit/project/test_architecture.py` holds that.
"""
