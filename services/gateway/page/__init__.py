"""The gateway's page: the pipeline as it is now, live in a browser, and look-ups. It only reads."""
