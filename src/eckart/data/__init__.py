"""What a user brings, read, checked and split."""
