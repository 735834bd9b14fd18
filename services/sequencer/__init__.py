"""The sequencer: gives contiguous ids and the time to operations, and forwards them untouched."""
