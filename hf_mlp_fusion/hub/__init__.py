"""What lies in a fused folder or repository, and what is written there: headers, cards, the stub, pushes.

May import `recipe`, `families`, `files`, `tensors`. It knows folders and JSON, no model classes.
"""

from .cards import write_card
from .headers import StoredTensor, check_stored_ffns, stored_tensors
from .measured import Measured, read_measured
from .push import Push, check_folder, push_folder
from .saved import MODEL_TAG, read_saved
from .side_files import carry_side_files, check_side_files
from .stub import add_stub, has_stub, save_stub
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
    "push_folder",
    "read_measured",
    "read_saved",
    "save_stub",
    "stored_tensors",
    "write_card",
]
