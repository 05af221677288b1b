"""What the headers of a checkpoint's safetensors files say: known before anything is loaded or allocated."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ..errors import BrokenCheckpointError
from ..families import Family, FFNSpec
from ..files import check_readable, files_like, read_object
from ..recipe import FFNWidth, FusionSection

__all__ = ["StoredTensor", "check_stored_ffns", "stored_tensors"]

_INTEGERS = ("I8", "I16", "I32", "I64", "U8")
_SHARD = re.compile(r"[\w.-]+\.safetensors")  # a name, not a path, and never a pickle


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as the header of a file describes it.

    Args:
        name: Its name.
        dtype: Safetensors' name of the dtype, such as `"I32"`.
        shape: The shape.
        file: The file that holds it.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path


def stored_tensors(
    name_or_path: str | Path, hub_kwargs: Mapping[str, Any], named: object = None
) -> dict[str, StoredTensor]:
    """Reads the headers of a checkpoint, single or sharded.

    Args:
        name_or_path: A folder or Hub id. What is not in the cache is fetched.
        hub_kwargs: `revision`, `subfolder`, `variant` and their like, as `from_pretrained` takes them.
        named: `transformers_weights` of its config, the file that is loaded whatever else is there.

    Returns:
        The stored tensors by name.

    Raises:
        BrokenCheckpointError: There are no safetensors, or they are broken.
    """
    from transformers.modeling_utils import _add_variant
    from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME
    from transformers.utils.hub import cached_file, cached_files

    kwargs = {name: value for name, value in hub_kwargs.items() if name != "variant"}
    variant = hub_kwargs.get("variant")
    stem, index_name = (_add_variant(name, variant) for name in (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME))
    if named is not None:
        if not isinstance(named, str) or not _SHARD.fullmatch(named.removesuffix(".index.json")):
            raise BrokenCheckpointError(f"config.json has transformers_weights={named!r:.80}, which is no safetensors")
        stem, index_name = (named, "") if named.endswith(".safetensors") else ("", named)

    def find(name: str) -> str | None:
        if not name:
            return None
        return cached_file(name_or_path, name, _raise_exceptions_for_missing_entries=False, **kwargs)

    if (single := find(stem)) is not None:
        files = [single]
    elif (index := find(index_name)) is not None:
        files = cached_files(name_or_path, _shards(Path(index)), **kwargs) or []
    elif others := files_like(os.path.join(name_or_path, hub_kwargs.get("subfolder", "")), "*.safetensors*"):
        raise BrokenCheckpointError(
            f"{name_or_path} has no {stem or index_name}, but {others[0]}: give its variant=, or rename the files"
        )
    else:
        raise BrokenCheckpointError(
            f"{name_or_path} has no {stem or index_name}, and weights in pickles are not read: they can run code. "
            "Convert them, with model.save_pretrained() in an environment that you trust them in"
        )
    return {name: tensor for file in files for name, tensor in _header(Path(file)).items()}


def _shards(index: Path) -> list[str]:
    weight_map = read_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise BrokenCheckpointError(f"{index} names no files: its weight_map must be an object of tensors and files")
    for name in weight_map.values():
        if not isinstance(name, str) or not _SHARD.fullmatch(name):
            raise BrokenCheckpointError(f"{index} names {name!r:.80}, which is no safetensors file beside it")
    return sorted(set(weight_map.values()))


def _header(path: Path) -> dict[str, StoredTensor]:
    try:
        with safe_open(path, framework="numpy") as file:  # which, unlike torch, maps it for reading only
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (no iterator)
            return {name: StoredTensor(name, s.get_dtype(), tuple(s.get_shape()), path) for name, s in slices.items()}
    except FileNotFoundError:
        check_readable(path.parent, path.name)
        raise
    except (SafetensorError, OverflowError) as error:
        raise BrokenCheckpointError(f"{path} is broken: {error}. Fetch it anew") from error


def check_stored_ffns(
    stored: Mapping[str, StoredTensor], section: FusionSection, family: Family, *, quantized: bool = False
) -> dict[str, StoredTensor]:
    """Checks that a checkpoint holds the fused FFNs that its config speaks of, P as integers.

    Args:
        stored: Its tensors.
        section: What its config says of fusion.
        family: Its family.
        quantized: Whether its weights are quantized: they have the names and shapes of some backend then, and only P
            can be checked.

    Returns:
        The P of each FFN that has one, by the name of the FFN.

    Raises:
        BrokenCheckpointError: Something is missing, has another shape, or is too much.
    """
    specs: dict[str, FFNSpec] = {}
    for name, widths in section.ffns.items():
        spec = next((spec for spec in family.specs_of(name) if widths.host in (None, spec.host)), None)
        if spec is None:
            raise BrokenCheckpointError(f"the mlp_fusion section names {name!r:.80}, which is no FFN of such a model")
        specs[name] = spec
    first = {f"{name}.{next(iter(_weights(spec, section.ffns[name])))}" for name, spec in specs.items()}
    prefix = _prefix(stored, first | {f"{name}.{spec.scaling_path}" for name, spec in specs.items()})
    stacks = {name.removeprefix(prefix).split(".")[0] for name in stored}
    # An encoder saved alone from an encoder-decoder: the other stack is not there. But one of them must be.
    present = [name for name in specs if name.split(".")[0] in stacks] or list(specs)
    scalings = {}
    for name in present:
        spec, widths = specs[name], section.ffns[name]
        if widths.form == "fused":
            scalings[name] = _stored(stored, f"{prefix}{name}.{spec.scaling_path}", widths.width, 1 + spec.stacked)
        for path, size in {}.items() if quantized else _weights(spec, widths).items():
            _stored(stored, f"{prefix}{name}.{path}", size, 2 + spec.stacked)
    known = {f"{prefix}{name}.{specs[name].scaling_path}" for name in scalings}
    for name, tensor in stored.items():
        if not name.endswith(".cluster_sizes"):
            continue
        if name not in known:
            raise BrokenCheckpointError(
                f"the checkpoint holds {name!r:.160}, but the mlp_fusion section of config.json names no such FFN: "
                "config and weights are of two fusions"
            )
        if tensor.dtype not in _INTEGERS:
            raise BrokenCheckpointError(
                f"the checkpoint's scaling matrix {name!r} is broken: it is stored as {tensor.dtype}, cluster sizes "
                "are integers. Fuse the original model again, or fetch the files anew"
            )
    return scalings


def _stored(stored: Mapping[str, StoredTensor], name: str, width: int, dimensions: int) -> StoredTensor:
    tensor = stored.get(name)
    if tensor is None:
        raise BrokenCheckpointError(
            f"the checkpoint lacks {name!r:.160}, part of a fused FFN; without it the model would compute garbage. "
            "Fetch the files anew, or fuse the original model again"
        )
    if len(tensor.shape) != dimensions or width not in tensor.shape:
        raise BrokenCheckpointError(
            f"the checkpoint has in another shape {name!r}: {list(tensor.shape)}, where config.json says {width} units"
        )
    return tensor


def _weights(spec: FFNSpec, widths: FFNWidth) -> dict[str, int]:
    return spec.stored_weights(widths.form, widths.width)


def _prefix(stored: Iterable[str], suffixes: Set[str]) -> str:
    """What the checkpoint puts before names within the base model: `"roberta."`, or nothing without a head."""
    for name in stored:
        start = 0
        for _ in range(4):
            if name[start:] in suffixes:
                return name[:start]
            start = name.find(".", start) + 1
    return ""
