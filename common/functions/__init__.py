"""Functions of customers as every service knows them: names, versions, modules, suspensions.

What runs them is `services/transactor/functions`. May import the root of `common` and `wal`.
"""
