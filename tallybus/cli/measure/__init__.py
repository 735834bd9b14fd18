"""`tallybus load` and `tallybus latency`: what a ledger takes, and how long one caller waits."""
