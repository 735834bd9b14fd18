"""The five stages of the ledger. Services import `tallybus.common` and never each other."""
