"""A row of a comparison: all that was measured of one method."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from ..errors import DataError

__all__ = ["Costs", "Row"]


@dataclass(frozen=True)
class Costs:
    """What a run of one batch costs.

    Args:
        median: Median wall-clock seconds.
        spread: Distance between the quartiles, in seconds.
        flops: Operations of matrix products and attention.
        memory: Bytes above the loaded model, None where the system does not tell.
        speedup: How many times faster than the original, both timed in turn; None of the original itself.
        original: The original's median in these turns, in seconds.
        original_spread: The distance between its quartiles.
    """

    median: float
    spread: float
    flops: int
    memory: int | None
    speedup: float | None = None
    original: float | None = None
    original_spread: float | None = None

    @property
    def certain(self) -> bool:
        """Whether the two times differ by more than they spread."""
        if self.original is None or self.original_spread is None:
            return True  # of the original, or written by an earlier version
        return abs(self.original - self.median) > max(self.spread, self.original_spread)


@dataclass(frozen=True)
class Row:
    """What was measured of one method. Errors are relative to the original model; None where there is none.

    Args:
        key: What was measured, under which recipe, on which model and data, by which version: equal keys, equal rows.
        comparison: The same without the method: rows of one table share it.
        about: What the table is about: model, recipe, data, settings, versions, machine.
        method: Name of the method, or `"original"`.
        refused: Why the method could not do it; the other fields are then empty.
        seconds: Wall-clock seconds that the method took.
        parameters: Parameters of the model.
        ffn_parameters: Those in FFNs.
        bytes: Bytes of parameters and buffers.
        output_errors: Relative output error by FFN.
        output_error: Their mean.
        hidden_error: Relative error of the last hidden state.
        ntk_errors: Relative error of the Adam NTK by FFN.
        ntk_error: The same of the whole kernel.
        ntk_cosine: Its cosine with the original's.
        ntk_size: Its size, relative to the original's.
        objective: What the loss is of: `"causal"`, `"masked"` or `"spans"`.
        loss: Mean negative log-probability of a token.
        perplexity: exp(loss).
        clusters: Cluster sizes by FFN, largest first.
        expert_load: Tokens that go to each expert, by sparse layer; none in a model without experts.
        forward: Costs of a forward.
        training: Costs of a training step.
    """

    key: str
    comparison: str
    about: dict[str, Any]
    method: str
    refused: str | None = None
    seconds: float | None = None
    parameters: int | None = None
    ffn_parameters: int | None = None
    bytes: int | None = None
    output_errors: dict[str, float | None] = field(default_factory=dict)
    output_error: float | None = None
    hidden_error: float | None = None
    ntk_errors: dict[str, float] = field(default_factory=dict)
    ntk_error: float | None = None
    ntk_cosine: float | None = None
    ntk_size: float | None = None
    objective: str | None = None
    loss: float | None = None
    perplexity: float | None = None
    clusters: dict[str, list[int]] = field(default_factory=dict)
    expert_load: dict[str, list[int]] = field(default_factory=dict)
    forward: Costs | None = None
    training: Costs | None = None

    def to_dict(self) -> dict[str, Any]:
        """Returns the row as plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: object) -> Row:
        """Reads what `to_dict` wrote.

        Raises:
            DataError: It is no row.
        """
        known = {item.name for item in fields(cls)}
        if not isinstance(values, Mapping) or not _NEEDED <= set(values) <= known:
            raise DataError("a line is no row of a comparison; was it written by another version of hf_mlp_fusion?")
        try:
            costs = {name: None if values.get(name) is None else Costs(**values[name]) for name in _COSTS}
            return cls(**{**values, **costs})
        except TypeError as error:
            raise DataError(f"a line is no row of a comparison: {error}") from error


_COSTS = ("forward", "training")
_NEEDED = {"key", "comparison", "about", "method"}
