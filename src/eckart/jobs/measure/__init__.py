"""Nuclear norm, entropy and ranks of hidden states."""
