"""Fine-tune one adapter over many clients that keep their data, by Flower."""
