"""Files and folders, whole or not at all, found without loading; and the memory that there is to load them into.

May import `errors`. Nothing here knows of models.
"""

from .atomic import check_output_folder, check_writable, output_folder, whole_file, write_bytes, write_text
from .budget import available_bytes, check_room, readable_bytes, spare_bytes
from .disk import check_disk
from .json_files import read_object
from .json_lines import append_json, read_json
from .locate import check_exists, check_readable, files_like, is_repo_id, locate_file
from .minilm import minilm_folder
from .resumable import check_same_run, claimed

__all__ = [
    "append_json",
    "available_bytes",
    "check_disk",
    "check_exists",
    "check_output_folder",
    "check_readable",
    "check_room",
    "check_same_run",
    "check_writable",
    "claimed",
    "files_like",
    "is_repo_id",
    "locate_file",
    "minilm_folder",
    "output_folder",
    "read_json",
    "read_object",
    "readable_bytes",
    "spare_bytes",
    "whole_file",
    "write_bytes",
    "write_text",
]
