"""Fused models on the Hub: pushing, model cards, and the stub of remote code."""

from .cards import write_card
from .measured import Measured, read_measured
from .push import Push, push_folder
from .stub import add_stub
from .trainer import FusionCardMixin

__all__ = ["FusionCardMixin", "Measured", "Push", "add_stub", "push_folder", "read_measured", "write_card"]
