"""The spectra of a model's weights."""
