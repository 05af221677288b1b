"""The fine-tuning benchmark."""
