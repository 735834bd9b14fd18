"""The gateway: the only service that clients talk to. It checks, gathers, waits and answers."""
