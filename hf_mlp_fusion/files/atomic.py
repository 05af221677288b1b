"""Files and folders that come into being whole or not at all."""

from __future__ import annotations

import contextlib
import glob
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from ..errors import FusionConfigError, FusionError

__all__ = ["check_output_folder", "check_writable", "output_folder", "whole_file", "write_bytes", "write_text"]

_LOCK = ".lock"  # behind the name of a folder that is being written


@contextlib.contextmanager
def output_folder(out: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A folder that comes into being whole or not at all.

    Args:
        out: The folder to write. Its parents are made.
        overwrite: Replace a model folder that is there.

    Yields:
        A temporary folder beside `out`, which takes its place when the block ends without an error.

    Raises:
        FusionConfigError: `out` is a file, or a folder that is not empty (unless `overwrite`, and then only if it is
            a model folder).
        OSError: It could not be written. Errors of this package, raised in the block, pass unchanged.
    """
    out = Path(out).expanduser().absolute()
    check_output_folder(out, overwrite=overwrite)
    out.parent.mkdir(parents=True, exist_ok=True)
    _clear(out)
    temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    lock = FileLock(f"{temporary}{_LOCK}")
    try:
        lock.acquire()
        yield temporary
        temporary.chmod(0o777 & ~_umask())
        if out.exists():
            replaced = temporary.with_name(f"{temporary.name}.replaced")
            out.rename(replaced)
            temporary.rename(out)
            shutil.rmtree(replaced)
        else:
            temporary.rename(out)
    except FusionError:
        raise
    except Exception as error:  # safetensors has exceptions of its own
        raise OSError(f"{out} could not be written, and nothing was left behind: {error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        lock.release()
        Path(lock.lock_file).unlink(missing_ok=True)


def _clear(out: Path) -> None:
    """Clears away what a run that was killed has left of a folder: nobody holds its lock any more."""
    for path in out.parent.glob(f".{glob.escape(out.name)}.*{_LOCK}"):
        lock = FileLock(path)
        try:
            lock.acquire(blocking=False)
        except Timeout:  # that run is at work
            continue
        shutil.rmtree(str(path).removesuffix(_LOCK), ignore_errors=True)
        lock.release()
        path.unlink(missing_ok=True)


def check_output_folder(out: Path, *, overwrite: bool, source: str | Path | None = None) -> None:
    """Refuses, before any work is done, what `output_folder` would refuse.

    Args:
        out: The folder to write.
        overwrite: As for `output_folder`.
        source: Folder (or Hub id) of the model that is read: `out` must be another.
    """
    if source is not None and Path(source).is_dir() and Path(source).resolve().is_relative_to(out.resolve()):
        raise FusionConfigError(f"{out} is or holds the model itself; name another folder")
    if out.is_file():
        raise FusionConfigError(f"{out} is a file; name a folder")
    check_writable(out)
    if not out.exists() or not any(out.iterdir()):
        return
    if not overwrite:
        raise FusionConfigError(f"{out} is not empty; name another folder, or add --overwrite")
    if not (out / "config.json").is_file():
        raise FusionConfigError(f"{out} is not a model folder (no config.json), so it will not be overwritten")


def check_writable(out: Path) -> None:
    """Checks that something may be written at a place, before the work that it will hold.

    Args:
        out: A file or folder, which need not be there.

    Raises:
        FusionConfigError: It may not.
    """
    place = out.expanduser().absolute().parent
    while not place.exists():
        place = place.parent
    try:
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=place):
            pass
    except OSError as error:
        raise FusionConfigError(
            f"{out} cannot be written ({error.strerror}): name another place, or give yourself permission"
        ) from error


def write_text(path: Path, text: str) -> None:
    """Writes a text file, whole or not at all.

    Args:
        path: The file; its folder exists.
        text: What it will hold, in UTF-8.
    """
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a file, whole or not at all.

    Args:
        path: The file; its folder exists.
        data: What it will hold.
    """
    with whole_file(path) as temporary:
        temporary.write_bytes(data)


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A file that comes into being whole or not at all, written by whatever writes files.

    Args:
        path: The file; its folder exists.

    Yields:
        A temporary file beside it, which takes its place when the block ends without an error.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        yield Path(name)
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
