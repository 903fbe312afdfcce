"""A model and a data set made ready for training: task, encoding, pretrained weights, trainer, statistics."""
