"""Fused models on the Hub: push."""

from .push import Push, push_folder

__all__ = ["Push", "push_folder"]
