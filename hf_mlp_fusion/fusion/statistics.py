"""What a calibration knows of a model, in files: all that selecting units and refitting them needs, FFN by FFN."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from ..errors import BrokenCheckpointError
from ..files import read_object, whole_file, write_text
from ..modeling.ffn import FFN
from ..tensors import Elimination, Moments
from .courses import Course
from .loss_metric import metric_place
from .statistics_header import FORMAT, Header, tensor_bytes
from .watching import TokenSample

__all__ = ["FFNStatistics", "Statistics"]

_HEADER = "statistics.json"
_MOMENTS = ("gram", "cross", "h_mean", "y_mean")
_SAMPLES = ("held_out", "few")


@dataclass(frozen=True)
class FFNStatistics:
    """What is known of one FFN.

    Args:
        moments: Of its hidden units and its output, float64; None where it saw no token.
        held_out: Tokens that the moments are not of, by which errors are told.
        few: All tokens that the moments are of, where they are too few to choose any of its units by.
    """

    moments: Moments | None
    held_out: TokenSample | None = None
    few: TokenSample | None = None


class Statistics:
    """A folder of statistics: `statistics.json`, and a safetensors file for each FFN and each metric.

    Args:
        folder: The folder.

    Raises:
        BrokenCheckpointError: It is none, or of another version.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        path = self.folder / _HEADER
        if not path.is_file():
            raise BrokenCheckpointError(f"{folder} holds no statistics: make them with `hf-mlp-fusion calibrate`")
        values = read_object(path)
        if values.get("format") != FORMAT:
            raise BrokenCheckpointError(
                f"{folder} has statistics of format {values.get('format')}, and this version reads {FORMAT}: "
                "calibrate again"
            )
        if set(values) != {item.name for item in fields(Header)}:
            raise BrokenCheckpointError(f"{path} is no header of statistics: calibrate again")
        self.header = Header(**values)

    @classmethod
    def create(cls, folder: Path, header: Header) -> Statistics:
        """Begins statistics in a folder.

        Args:
            folder: The folder; it exists.
            header: What they are of.
        """
        write_text(folder / _HEADER, header.to_json())
        return cls(folder)

    def done(self, names: Iterable[str], *, whole: bool = False) -> None:
        """Writes down that FFNs are done.

        Args:
            names: Their names.
            whole: That nothing is left to do.
        """
        self.header.ffns += [name for name in names if name not in set(self.header.ffns)]
        self.header.whole = whole
        write_text(self.folder / _HEADER, self.header.to_json())

    def write(self, ffn: FFN, found: FFNStatistics) -> None:
        """Writes what is known of an FFN, whole or not at all.

        Args:
            ffn: The FFN, its weights in memory.
            found: What is known.
        """
        tensors: dict[str, Tensor] = {}
        notes = {"weights": _fingerprint(ffn), "ffn": ffn.name}
        if found.moments is not None:
            tensors |= {name: getattr(found.moments, name) for name in _MOMENTS}
            # As a tensor: a number written in digits might be read as its neighbour.
            tensors["y_square"] = torch.tensor(found.moments.y_square, dtype=torch.float64)
            tensors["count"] = torch.tensor(found.moments.count)
        for name in _SAMPLES:
            if (sample := getattr(found, name)) is not None:
                tensors |= {
                    f"{name}.{key}": value
                    for key in ("inputs", "outputs", "gates")
                    if (value := getattr(sample, key)) is not None
                }
        self._save(ffn.name, tensors, notes)

    def write_metric(self, place: str, factor: Tensor | None) -> None:
        """Writes the metric of the loss at a place.

        Args:
            place: The FFN, or the layer of experts (`metric_place`).
            factor: A factor of it, float32; None where no gradient arrived.
        """
        self._save(f"{place}.metric", {} if factor is None else {"factor": factor}, {})

    def read(self, ffn: FFN) -> FFNStatistics:
        """What is known of an FFN, on the CPU.

        Args:
            ffn: The FFN. Where its weights are in memory, they must be those that were calibrated.

        Raises:
            BrokenCheckpointError: The file is not there, broken, or of another FFN.
        """
        tensors, notes = self._load(ffn.name)
        self._check_weights(ffn, notes)
        moments = None
        if "count" in tensors:
            width, size = ffn.width, ffn.output_size
            shapes = {"gram": (width, width), "cross": (width, size), "h_mean": (width,), "y_mean": (size,)}
            for name, shape in (shapes | {"y_square": ()}).items():
                self._check(ffn.name, name, tensors, shape, torch.float64)
            self._check(ffn.name, "count", tensors, (), torch.int64)
            parts = {name: tensors[name] for name in shapes}
            moments = Moments(int(tensors["count"]), **parts, y_square=float(tensors["y_square"]))
        return FFNStatistics(moments, **{name: self._sample(ffn, name, tensors) for name in _SAMPLES})

    def read_held_out(self, ffn: FFN) -> TokenSample | None:
        """The tokens of an FFN by which its error is told, without the moments, which are far larger.

        Args:
            ffn: The FFN, its weights in memory.

        Raises:
            BrokenCheckpointError: The file is not there, broken, or of another FFN.
        """
        tensors, notes = self._load(ffn.name, "held_out.")
        self._check_weights(ffn, notes)
        return self._sample(ffn, "held_out", tensors)

    def read_metric(self, ffn: FFN) -> Tensor | None:
        """A factor of the metric of the loss for an FFN, on the CPU; None where no gradient arrived.

        Args:
            ffn: The FFN.

        Raises:
            BrokenCheckpointError: The file is not there, broken, or of another FFN.
        """
        place = f"{metric_place(ffn)}.metric"
        tensors, _ = self._load(place)
        if "factor" in tensors:
            self._check(place, "factor", tensors, (ffn.output_size, ffn.output_size), torch.float32)
        return tensors.get("factor")

    def read_course(self, ffn: FFN, metric: str) -> Course | None:
        """How the elimination of an FFN's units went, on the CPU; None where that is not known of these statistics.

        Args:
            ffn: The FFN.
            metric: The metric of the error.

        Raises:
            BrokenCheckpointError: The file is broken.
        """
        name = f"{ffn.name}.course"
        if not self._path(name).is_file():
            return None
        tensors, notes = self._load(name)
        if notes != self._course_notes(ffn, metric):
            return None
        drops = len(tensors["order"]) if "order" in tensors else 0
        for key, shape, dtype in (
            ("order", (drops,), torch.int64),
            ("rise", (drops + 1,), torch.float64),
            ("count", (), torch.int64),
        ):
            self._check(name, key, tensors, shape, dtype)
        order, rise = tensors["order"], tensors["rise"]
        each_once = set(order.tolist()) <= set(range(ffn.width)) and len(order.unique()) == drops < ffn.width
        if not (each_once and rise.isfinite().all()):
            raise BrokenCheckpointError(f"{self._path(name)} is no course of {ffn.width} units: delete it")
        return Course(int(tensors["count"]), Elimination(ffn.width, order, rise))

    def write_course(self, ffn: FFN, metric: str, course: Course) -> None:
        """Writes how the elimination of an FFN's units went, whole or not at all.

        Args:
            ffn: The FFN.
            metric: The metric of the error.
            course: How it went.
        """
        elimination = course.elimination
        tensors = {"order": elimination.order, "rise": elimination.rise, "count": torch.tensor(course.tokens)}
        self._save(f"{ffn.name}.course", tensors, self._course_notes(ffn, metric))

    def _course_notes(self, ffn: FFN, metric: str) -> dict[str, str]:
        """What a course is of: these moments, and a metric."""
        _, notes = self._load(ffn.name, "no tensor")
        return notes | {"rows": self.header.sha256, "seed": str(self.header.seed), "metric": metric}

    def check(self, model: PreTrainedModel, ffns: Sequence[FFN]) -> None:
        """Checks that there is what fusing a model needs; shapes and weights are checked as they are read.

        Args:
            model: The model; its weights need not be in memory.
            ffns: The FFNs to fuse.

        Raises:
            BrokenCheckpointError: There is not.
        """
        source = self.header.source
        if source.get("model_type") != model.config.model_type:
            raise BrokenCheckpointError(
                f"{self.folder} has statistics of {source.get('name_or_path')}, a {source.get('model_type')}, and the "
                f"model is a {model.config.model_type}: calibrate this model"
            )
        if not self.header.whole:
            raise BrokenCheckpointError(f"the statistics in {self.folder} are not finished: the same command goes on")
        known = set(self.header.ffns)
        for ffn in ffns:
            if ffn.name not in known or not self._path(ffn.name).is_file():
                raise BrokenCheckpointError(f"{self.folder} has no statistics of {ffn.name}: calibrate this model")

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"

    def _save(self, name: str, tensors: Mapping[str, Tensor], notes: Mapping[str, str]) -> None:
        with whole_file(self._path(name)) as path:
            save_file({key: item.cpu().contiguous() for key, item in tensors.items()}, path, metadata=dict(notes))

    def _load(self, name: str, prefix: str = "") -> tuple[dict[str, Tensor], dict[str, str]]:
        try:
            with safe_open(self._path(name), framework="pt") as file:
                names = [key for key in file.keys() if key.startswith(prefix)]  # noqa: SIM118
                return {key: file.get_tensor(key) for key in names}, file.metadata() or {}
        except (OSError, SafetensorError) as error:
            raise BrokenCheckpointError(f"{self._path(name)} cannot be read ({error}): calibrate again") from error

    def _sample(self, ffn: FFN, name: str, tensors: Mapping[str, Tensor]) -> TokenSample | None:
        if f"{name}.inputs" not in tensors:
            return None
        count = len(tensors[f"{name}.inputs"])
        shapes: dict[str, tuple[int, ...]] = {"inputs": (count, ffn.hidden_size), "outputs": (count, ffn.output_size)}
        if f"{name}.gates" in tensors:
            shapes["gates"] = (count,)
        for key, shape in shapes.items():
            self._check(ffn.name, f"{name}.{key}", tensors, shape)
        return TokenSample(**{key: tensors[f"{name}.{key}"] for key in shapes})

    def _check_weights(self, ffn: FFN, notes: Mapping[str, str]) -> None:
        here = _fingerprint(ffn)
        if notes.get("ffn") != ffn.name or here not in ("", notes.get("weights")):
            source = self.header.source
            raise BrokenCheckpointError(
                f"{self.folder} was calibrated on other weights of {ffn.name} than these, on those of "
                f"{source.get('name_or_path')} in {source.get('dtype')}: calibrate this model"
            )

    def _check(
        self,
        file: str,
        name: str,
        tensors: Mapping[str, Tensor],
        shape: tuple[int, ...],
        dtype: torch.dtype | None = None,
    ) -> None:
        found = tensors.get(name)
        if found is None or found.shape != shape or dtype not in (None, found.dtype):
            what = "none" if found is None else f"{list(found.shape)} {found.dtype}"
            raise BrokenCheckpointError(
                f"{self._path(file)}: {name} should be {list(shape)}, and is {what}: calibrate this model"
            )


def _fingerprint(ffn: FFN) -> str:
    """Tells the weights of an FFN from others; empty where they are not in memory."""
    down = ffn.read().down
    return "" if down.is_meta else hashlib.sha256(tensor_bytes(down)).hexdigest()
