"""Train a language model from scratch, full or structured."""
