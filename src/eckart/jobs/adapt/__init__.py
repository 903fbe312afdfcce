"""Fine-tune one method on a task."""
