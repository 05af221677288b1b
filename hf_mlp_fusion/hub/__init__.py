"""What lies in a fused folder or repository, and what is written there: headers, cards, the stub, pushes.

May import `recipe`, `families`, `files`, `tensors`. It knows folders and JSON, no model classes. Its names are
imported when used: what only reads a folder waits for nothing else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..late_imports import when_used

if TYPE_CHECKING:
    from .cards import write_card
    from .headers import StoredTensor, check_stored_ffns, stored_tensors
    from .measured import Measured, read_measured
    from .push import Push, check_folder, hub_errors, push_folder
    from .saved import MODEL_TAG, read_saved
    from .side_files import carry_side_files, check_side_files
    from .stub import add_stub, has_stub, save_stub, without_stub
    from .trainer import FusionCardMixin

__all__ = [
    "MODEL_TAG",
    "FusionCardMixin",
    "Measured",
    "Push",
    "StoredTensor",
    "add_stub",
    "carry_side_files",
    "check_folder",
    "check_side_files",
    "check_stored_ffns",
    "has_stub",
    "hub_errors",
    "push_folder",
    "read_measured",
    "read_saved",
    "save_stub",
    "stored_tensors",
    "without_stub",
    "write_card",
]

__getattr__ = when_used(
    __name__,
    {
        "FusionCardMixin": "trainer",
        "MODEL_TAG": "saved",
        "Measured": "measured",
        "Push": "push",
        "StoredTensor": "headers",
        "add_stub": "stub",
        "carry_side_files": "side_files",
        "check_folder": "push",
        "check_side_files": "side_files",
        "check_stored_ffns": "headers",
        "has_stub": "stub",
        "hub_errors": "push",
        "push_folder": "push",
        "read_measured": "measured",
        "read_saved": "saved",
        "save_stub": "stub",
        "stored_tensors": "headers",
        "without_stub": "stub",
        "write_card": "cards",
    },
)
