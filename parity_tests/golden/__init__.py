"""Golden files: numbers made by running the original, replayed on the reference and on the port."""
