"""The gateway: the only stage that clients talk to. It checks, gathers, waits and answers."""
