"""The five services of the ledger, a package for each.

Services import `tallybus.common`, and never each other.
"""
