"""`python -m tallybus.services.transactor`: this service as a process, with its settings from the
environment."""

from tallybus.common.service import entry

if __name__ == "__main__":
    raise SystemExit(entry.run("transactor"))
