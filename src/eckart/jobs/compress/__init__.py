"""Make a pretrained model smaller."""
