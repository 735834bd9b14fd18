"""The transactor: the single writer that executes operations in order. Its guarantee: computed."""
