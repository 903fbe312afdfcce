"""Fine-tune one adapter over many clients that keep their data, by Flower."""

PEFT_LORA = "peft:lora"
"""The method of the clients where none is named."""
