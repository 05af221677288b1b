"""`FusionCard`: the model card of a fused model, or its part in a card that others wrote."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property

from huggingface_hub import CardData, EvalResult, ModelCard, ModelCardData
from jinja2 import Environment, PackageLoader, StrictUndefined

from ..recipe import REPORT_NAME, FusionConfig, FusionReport
from .measured import Measured
from .saved import MODEL_TAG, SavedModel, saved_architecture
from .stub import STUB_NAME, auto_classes

__all__ = ["FusionCard"]

_BEGIN = "<!-- mlp-fusion: from here to the end mark, `hf-mlp-fusion card` writes anew what it finds -->"
_END = "<!-- mlp-fusion: end -->"
# What no receipt says stands between marks of its own, and stays until it is given anew.
_PART = "<!-- mlp-fusion: {} -->"
_PART_END = "<!-- mlp-fusion: end of {} -->"
_MOST_ROWS = 64


@dataclass(frozen=True)
class FusionCard:
    """The card of a fused model.

    What is given here and what the receipt says is all that it says; what is not known is left out.

    Args:
        name: What the model is called in the card: a Hub id or a folder.
        saved: Its config and receipt.
        base_model: Hub id of the model that was fused.
        licence: The fields `license`, `license_name` and `license_link` of the metadata, those that are known.
        license_note: A sentence on the licence.
        measured: Figures that were measured on it.
        picture: Name of the picture beside the card.
    """

    name: str
    saved: SavedModel
    base_model: str | None = None
    licence: Mapping[str, str] = field(default_factory=dict)
    license_note: str = ""
    measured: Sequence[Measured] = ()
    picture: str | None = None

    @property
    def report(self) -> FusionReport:
        """The receipt."""
        return self.saved.report

    @cached_property
    def architecture(self) -> str:
        """The model's class; empty where the config names none."""
        return saved_architecture(self.saved.config)

    @cached_property
    def auto_class(self) -> str:
        """The Auto class that loads it."""
        known = auto_classes(self.saved.config)
        known.pop("AutoModelForPreTraining", None)  # the same class as that of another head
        return next((auto for auto, name in known.items() if name == self.architecture), "AutoModel")

    @cached_property
    def data(self) -> ModelCardData:
        """The metadata.

        `base_model_relation` is `"finetune"`: of the Hub's four, an adapter needs its base beside it, a merge has
        several, and a quantized model has the base's weights in fewer bits, which tools act upon. A fused model stands
        alone and has other weights, many of them fitted to data; and it is there to be fine-tuned.
        """
        from ..families.compat import pipeline_tag  # transformers takes seconds: not where there is no card to be

        tag = pipeline_tag(self.architecture.removeprefix("Fused"))
        results = [*self._calibration_results(tag), *(item.to_eval_result() for item in self.measured)]
        return ModelCardData(
            license=self.licence.get("license"),
            license_name=self.licence.get("license_name"),
            license_link=self.licence.get("license_link"),
            library_name="transformers",
            base_model=self.base_model,
            base_model_relation="finetune" if self.base_model else None,
            pipeline_tag=tag,
            tags=[MODEL_TAG],
            model_name=self.name if results else None,
            eval_results=results or None,
        )

    def _calibration_results(self, tag: str | None) -> list[EvalResult]:
        error = _mean([ffn.calibration_error for ffn in self.report.ffns])
        if error is None:
            return []
        return [
            EvalResult(
                task_type=tag or "other",
                dataset_type="calibration-data",
                dataset_name="the calibration data of the fusion",
                metric_type="relative-output-error",
                metric_name="relative output error of the fused FFNs, mean",
                metric_value=round(error, 4),
            )
        ]

    def section(self, old: str = "") -> str:
        """What the card says of fusion, between its marks.

        Args:
            old: The section so far, whose results and note on the licence stay where none are given.
        """
        report = self.report
        environment = _environment()
        results = licence = None
        if self.measured:
            commands = list(dict.fromkeys(item.command for item in self.measured if item.command))
            template = environment.get_template("results_template.md")
            results = template.render(measured=self.measured, commands=commands)
        if self.license_note:
            licence = f"## Licence\n\n{_safe(self.license_note)}"
        body = environment.get_template("card_template.md").render(
            name=self.name,
            report=report,
            report_name=REPORT_NAME,
            architecture=self.architecture or "a model",
            auto_class=self.auto_class,
            source=self.base_model or report.source.get("architecture") or "a model",
            version=str(report.versions.get("hf_mlp_fusion", "")),
            recipe=_describe(self.saved.section.recipe),
            tokens=max((ffn.tokens for ffn in report.ffns), default=0),
            skipped=report.skipped_names,
            most_rows=_MOST_ROWS,
            error=_mean([ffn.calibration_error for ffn in report.ffns]),
            inertia=_mean([ffn.inertia_share for ffn in report.ffns]),
            results=_part("results", results, old),
            licence=_part("licence", licence, old),
            picture=self.picture,
            stub_name=STUB_NAME,
            power=max((ffn.power for ffn in self.saved.section.ffns.values()), default=1.0),
        )
        return f"{_BEGIN}\n\n{body.strip()}\n\n{_END}"

    def merge_into(self, readme: str | None) -> str:
        """Puts the card's part into a README: all of it where there is none, else only what is not there.

        Text outside of the marks stays as it is, and so do metadata, but for tags and figures, which are added.

        Args:
            readme: The README so far.

        Returns:
            The README with the part on fusion and its metadata.

        Raises:
            ValueError: The metadata of the README are not legible.
        """
        if readme is None or not readme.strip():
            return str(ModelCard(f"---\n{self.data.to_yaml()}\n---\n\n# {_safe(self.name)}\n\n{self.section()}\n"))
        card = ModelCard(readme)
        begin, end = card.text.find(_BEGIN), card.text.rfind(_END)
        if 0 <= begin < end:
            card.text = card.text[:begin] + self.section(card.text[begin:end]) + card.text[end + len(_END) :]
        else:
            card.text = f"{card.text.rstrip()}\n\n{self.section()}\n"
        _add_metadata(card.data, self.data)
        return str(card)


def _part(name: str, text: str | None, old: str) -> str:
    """A part between marks: the text, or what stands there in the old section."""
    begin, end = _PART.format(name), _PART_END.format(name)
    if text is None:
        text = old.partition(begin)[2].partition(end)[0]
    return "\n\n".join(piece for piece in (begin, text.strip(), end) if piece)


def _add_metadata(data: CardData, own: CardData) -> None:
    new = {name: value for name, value in vars(own).items() if value is not None}
    if new.get("license", data.get("license")) != data.get("license"):  # name and link go with it
        for name in ("license", "license_name", "license_link"):
            data.pop(name)
    if new.get("base_model", data.get("base_model")) != data.get("base_model"):
        data.pop("base_model")
        data.pop("base_model_relation")
    tags = data.get("tags") or []
    tags = tags if isinstance(tags, list) else [tags]
    data["tags"] = tags + [tag for tag in new.pop("tags") if tag not in tags]
    results = new.pop("eval_results", [])
    if results:
        old = data.get("eval_results") or []
        kept = [result for result in old if not any(result.is_equal_except_value(item) for item in results)]
        data["eval_results"] = kept + results
    for name, value in new.items():
        if data.get(name) is None:
            data[name] = value


def _describe(recipe: FusionConfig) -> str:
    """A recipe as it is written, without what is so by default."""
    given = ((item.name, getattr(recipe, item.name), item.default) for item in fields(recipe))
    return ", ".join(f"{name}={value!r}" for name, value, default in given if name == "width" or value != default)


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("hf_mlp_fusion.hub", "."), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "safe_text": _safe,
        "code": lambda text: f"`{_safe(text, also='[]')}`",
        "literal": lambda text: json.dumps(_safe(text)),
        "shell": lambda text: shlex.quote(_safe(text)),
    }
    return environment


def _safe(text: object, also: str = "") -> str:
    """Text of others that ends no table cell, code span, fence, comment or string, and holds no HTML or link."""
    return re.sub(rf"[^\w .,:;/+=(){{}}*@%~'\"–‖→{re.escape(also)}-]", "?", str(text)[:1000]).strip() or "?"


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
