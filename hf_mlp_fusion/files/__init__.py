"""Files and folders: whole or not at all, found without loading.

May import `errors`. Nothing here knows of models.
"""

from .atomic import check_output_folder, output_folder, write_bytes, write_text
from .json_files import read_object
from .json_lines import append_json, read_json
from .locate import check_exists, check_readable, files_like, is_repo_id, locate_file
from .minilm import minilm_folder

__all__ = [
    "append_json",
    "check_exists",
    "check_output_folder",
    "check_readable",
    "files_like",
    "is_repo_id",
    "locate_file",
    "minilm_folder",
    "output_folder",
    "read_json",
    "read_object",
    "write_bytes",
    "write_text",
]
