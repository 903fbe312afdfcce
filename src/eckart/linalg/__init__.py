"""The ground floor: pure functions on tensors, no modules, no input or output."""
