"""Measurements, run from the project root: `python -m benchmarks.kernel`. None is a test."""
