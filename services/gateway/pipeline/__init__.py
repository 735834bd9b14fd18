"""The side of the pipeline: what was sent into it, what came back, and how far each stage is."""
