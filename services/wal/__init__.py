"""The log stage (write-ahead log). Its guarantee: committed, that is, on disk and confirmed by
it."""
