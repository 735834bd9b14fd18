"""The snapshotter: the read side. Its guarantee: readable. It applies durable transactions only."""
