"""The side of clients: what they may ask, who may ask it, and the one answer to each request."""
