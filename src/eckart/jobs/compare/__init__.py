"""Train every method at one budget on the same data, and say which is best."""
