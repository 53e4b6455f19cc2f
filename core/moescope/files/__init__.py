"""Files that others made are data: checked before they are opened, counted while they are read, never half-written.

Only the standard library is used, so that the check comes before torch, transformers or safetensors see a byte.
Every fault is an `InputError` in one sentence that names the file without its folder.
"""

from moescope.files.archives import ArchiveLimits, extract_archive, safe_relative, wanted
from moescope.files.headers import Header, TensorEntry, read_header
from moescope.files.json_files import read_json, shown
from moescope.files.staging import staged, usual_mode

__all__ = [
    "ArchiveLimits",
    "Header",
    "TensorEntry",
    "extract_archive",
    "read_header",
    "read_json",
    "safe_relative",
    "shown",
    "staged",
    "usual_mode",
    "wanted",
]
