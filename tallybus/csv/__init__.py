"""Transactions in CSV files: what a file looks like, and its rows as operations."""
