"""Whatever a user hands in as calibration data is taken for what it is, or refused in one line."""

import itertools

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from conftest import tiny_model
from tiny_text import tiny_texts, tiny_tokenizer
from torch.utils.data import DataLoader

from hf_mlp_fusion import FusionConfig, FusionWarning, fuse_model
from hf_mlp_fusion.data import as_batches, row_count
from hf_mlp_fusion.errors import DataError
from hf_mlp_fusion.fusion import calibration_batches
from hf_mlp_fusion.fusion.calibration import hold_out
from hf_mlp_fusion.fusion.enough import LENGTH, ROWS, SAMPLES, enough_rows, token_count
from hf_mlp_fusion.measure import ntk, output_error
from hf_mlp_fusion.modeling.find import find_ffns

WIDTH = 16
TOKENS, PADDING = 12, 3
GENERATOR = torch.Generator().manual_seed(3)
IDS = torch.randint(5, 70, (20, TOKENS), generator=GENERATOR)
MASK = torch.ones(20, TOKENS, dtype=torch.int64)
MASK[0, -PADDING:] = 0
ZEROS, REAL = torch.zeros(20, dtype=torch.int64), int(MASK.sum()) - TOKENS  # one row of 17 is held out
SEQUENCE = transformers.BertForSequenceClassification
SQUARE = MASK[:, None, None, :].expand(-1, 1, TOKENS, -1)
EMBEDDINGS = torch.randn(20, TOKENS, 16, generator=GENERATOR)

BATCHES = {
    "a classifier's": (SEQUENCE, {"input_ids": IDS, "attention_mask": MASK, "labels": ZEROS}),
    "several labels a row": (SEQUENCE, {"input_ids": IDS, "attention_mask": MASK, "labels": torch.zeros(20, 2)}),
    "question answering": (
        transformers.BertForQuestionAnswering,
        {"input_ids": IDS, "attention_mask": MASK, "start_positions": ZEROS, "end_positions": ZEROS + 11},
    ),
    "next sentences": (
        transformers.BertForPreTraining,
        {"input_ids": IDS, "attention_mask": MASK, "labels": IDS, "next_sentence_label": ZEROS},
    ),
    "a square mask": (SEQUENCE, {"input_ids": IDS, "attention_mask": SQUARE.bool()}),
    "an added mask": (SEQUENCE, {"input_ids": IDS, "attention_mask": (1.0 - SQUARE.float()) * -1e9}),
    "embeddings": (transformers.BertForMaskedLM, {"inputs_embeds": EMBEDDINGS, "attention_mask": MASK}),
    "strings beside": (SEQUENCE, {"input_ids": IDS, "attention_mask": MASK, "sentence": ["a"] * 20}),
    "columns that are no inputs": (SEQUENCE, {"idx": ZEROS[:3], "input_ids": IDS, "attention_mask": MASK}),
    "nothing instead": (SEQUENCE, {"input_ids": IDS, "attention_mask": MASK, "token_type_ids": None}),
    "positions that all rows share": (
        SEQUENCE,
        {"position_ids": torch.arange(TOKENS)[None], "input_ids": IDS, "attention_mask": MASK},
    ),
    "several choices": (
        transformers.BertForMultipleChoice,
        {"input_ids": IDS[:, None], "attention_mask": MASK[:, None], "labels": ZEROS},
    ),
}


@pytest.mark.parametrize("kind", BATCHES)
def test_batches_of_any_trainer(kind):
    """The units are those that plain batches choose, padding left out; measures take them as well."""
    head, batch = BATCHES[kind]
    model = tiny_model("bert", head)
    fused = fuse_model(model, FusionConfig(width=WIDTH), calibration=[batch])
    assert [ffn.tokens for ffn in fused.fusion_report.ffns] == [REAL] * 3
    assert all(0 < ffn.calibration_error < 1 for ffn in fused.fusion_report.ffns)
    if kind not in ("embeddings", "nothing instead"):
        body = tiny_model("bert", transformers.BertModel)
        body.load_state_dict(body.state_dict() | dict(model.bert.state_dict()))
        plain = fuse_model(body, FusionConfig(width=WIDTH), calibration=[{"input_ids": IDS, "attention_mask": MASK}])
        for name, item in plain.encoder.state_dict().items():
            if name.endswith("cluster_sizes"):
                assert item.equal(fused.bert.encoder.state_dict()[name])
    assert 0 < output_error(model, fused, [batch]).hidden_state < 1
    assert ntk(fused, [{key: _some(value) for key, value in batch.items()}]).total.shape == (2, 2)


def _some(value):
    return value if value is None or len(value) < 20 else value[:2]


def test_choices_of_several_lengths_and_their_padding():
    model = tiny_model("bert", transformers.BertForMultipleChoice)
    ids, mask = IDS.view(10, 2, TOKENS), MASK.view(10, 2, TOKENS)
    fused = fuse_model(model, FusionConfig(width=WIDTH), calibration=[{"input_ids": ids, "attention_mask": mask}] * 2)
    assert fused.fusion_report.ffns[0].tokens == 2 * (20 * TOKENS - PADDING) - 2 * TOKENS


class _Tensor(transformers.BertForMaskedLM):
    def forward(self, *args, **kwargs):
        return super().forward(*args, **kwargs).logits


class _Tuple(transformers.BertModel):
    def forward(self, input_ids=None, attention_mask=None, **kwargs):
        states = super().forward(input_ids, attention_mask, **kwargs).last_hidden_state
        return states, states[:, 0]


class _Nothing(transformers.BertModel):
    def forward(self, input_ids, attention_mask=None, output_hidden_states=False):
        outputs = super().forward(input_ids, attention_mask, output_hidden_states=output_hidden_states)
        return outputs if output_hidden_states else {"best": outputs.last_hidden_state.argmax(-1)}


@pytest.mark.parametrize("head", [_Tensor, _Tuple, _Nothing])
def test_own_classes_return_what_they_like(head):
    model = tiny_model("bert", head)
    fused = fuse_model(model, FusionConfig(width=WIDTH), calibration=[{"input_ids": IDS, "attention_mask": MASK}])
    assert fused.fusion_report.ffns[0].tokens == REAL
    assert 0 < output_error(model, fused, [{"input_ids": IDS}]).mean < 1


# What holds them

TEXTS = tiny_texts(40)
TOKENIZER = tiny_tokenizer("bert")


def _endless():
    while True:
        yield from TEXTS


FRAME = pd.DataFrame({"number": range(40), "text": TEXTS}, index=range(7, 47))
HOLDERS = {
    "list": TEXTS,
    "tuple": tuple(TEXTS),
    "generator": (text for text in TEXTS),
    "series": FRAME["text"],
    "frame": FRAME,
    "array": np.array(TEXTS),
    "data set": datasets.Dataset.from_dict({"label": [0] * 40, "sentence": TEXTS}),
    "stream": datasets.Dataset.from_dict({"label": [0] * 40, "sentence": TEXTS}).to_iterable_dataset(),
    "columns": {"label": [0] * 40, "text": TEXTS},
    "arrow": datasets.Dataset.from_dict({"label": [0] * 40, "sentence": TEXTS}).data.table,
    "loader of texts": DataLoader([{"text": text} for text in TEXTS], batch_size=None),
    "with blank ones": ["", *TEXTS, " \n"],
}


@pytest.mark.parametrize("holder", HOLDERS)
def test_texts_in_whatever_holds_them(holder):
    model = tiny_model("bert", SEQUENCE)
    wanted = calibration_batches(model, TEXTS, TOKENIZER)
    found = calibration_batches(model, HOLDERS[holder], TOKENIZER)
    assert len(found) == len(wanted)
    assert all(torch.equal(x[key], y[key]) for x, y in zip(wanted, found, strict=True) for key in x)


ENCODED = [TOKENIZER(text) for text in TEXTS[:20]]
TOGETHER = TOKENIZER(TEXTS[:20], padding=True, return_tensors="pt")
BATCH_HOLDERS = {
    "one batch": TOGETHER,
    "lists of several lengths": TOKENIZER(TEXTS[:20]),
    "rows": ENCODED,
    "rows of tensors": [{key: torch.tensor(value) for key, value in row.items()} for row in ENCODED],
    "token ids": TOKENIZER(TEXTS[:20])["input_ids"],
    "arrays": [np.array(row["input_ids"]) for row in ENCODED],
    "data set of rows": datasets.Dataset.from_list([dict(row) for row in ENCODED]),
    "stream of rows": datasets.Dataset.from_list([dict(row) for row in ENCODED]).to_iterable_dataset(),
    "frame of rows": pd.DataFrame([dict(row) for row in ENCODED]),
    "loader": DataLoader(
        [dict(row) for row in ENCODED], batch_size=4, collate_fn=transformers.DataCollatorWithPadding(TOKENIZER)
    ),
}


@pytest.mark.parametrize("holder", BATCH_HOLDERS)
def test_rows_in_whatever_holds_them(holder):
    model = tiny_model("bert", SEQUENCE)
    found = calibration_batches(model, BATCH_HOLDERS[holder])
    rows = [ids[mask.bool()].tolist() for batch in found for ids, mask in zip(*_ids_and_mask(batch), strict=True)]
    assert rows == [row["input_ids"] for row in ENCODED]


def _ids_and_mask(batch):
    return batch["input_ids"], batch["attention_mask"]


def test_many_rows_in_one_item_become_batches_of_sixteen():
    found = calibration_batches(tiny_model("bert", SEQUENCE), TOKENIZER(TEXTS))
    assert [len(batch["input_ids"]) for batch in found] == [16, 16, 8]


def test_a_tensor_of_token_ids():
    (batch,) = calibration_batches(tiny_model("bert"), IDS)
    assert batch["input_ids"].equal(IDS)


@pytest.mark.parametrize("head", [SEQUENCE, transformers.BertForMaskedLM])
def test_what_never_ends_is_taken_as_far_as_needed(head):
    model = tiny_model("bert", head)
    taken = calibration_batches(model, _endless(), TOKENIZER)
    rows, tokens = (sum(map(count, taken)) for count in (row_count, token_count))
    assert rows > ROWS  # these are short
    assert abs(tokens - LENGTH * ROWS) < LENGTH

    def batches():
        while True:
            yield {"input_ids": IDS}

    found = calibration_batches(model, batches())
    assert len(found) == -(-LENGTH * ROWS // IDS.numel())  # whole batches
    assert sum(map(row_count, found)) - sum(map(row_count, hold_out(found)[0])) == ROWS - SAMPLES


def test_few_long_rows_are_not_enough():
    taken = enough_rows(itertools.repeat(500), lambda tokens: (1, tokens))
    assert len(taken) == ROWS > SAMPLES


def test_what_ends_is_taken_whole():
    assert enough_rows([3, 4], lambda tokens: (1, tokens)) == [3, 4]


REFUSED = {
    "a hole": ([*TEXTS, None], "item 41 is None: give texts or batches"),
    "a number": ([float("nan")], "item 1 is of type float: give texts"),
    "bytes": ([b"text"], "item 1 is of type bytes: give texts"),
    "texts, then a batch": ([*TEXTS, TOGETHER], "item 41 is a batch, and those before are not"),
    "batches, then a text": ([TOGETHER, "text"], "item 2 is a text, and those before are not"),
    "other columns": (
        [{"pixels": IDS}],
        r"item 1 has none of the inputs that .* takes \(input_ids or inputs_embeds\)",
    ),
    "words for ids": ([{"input_ids": ["a", "b"]}], "item 1 holds no"),
    "lists of words": ([["a", "b"]], "item 1 holds no"),
    "rows that differ": ([{"input_ids": IDS, "labels": ZEROS[:3]}], "input_ids has 20 rows, labels 3"),
    "another mask": (
        [{"input_ids": IDS, "attention_mask": MASK[:, 1:]}],
        r"input_ids is \[20, 12\], attention_mask \[20, 11\]",
    ),
    "unknown tokens": ([{"input_ids": IDS}, {"input_ids": IDS + 500}], "does not run on (row|calibration)"),
    "floats for ids": ([{"input_ids": EMBEDDINGS[..., 0]}], "input_ids are floats, and token ids are whole numbers"),
    "negative ids": ([{"input_ids": -IDS}], "does not run on"),
    "several data sets": (
        datasets.DatasetDict({"train": datasets.Dataset.from_dict({"text": TEXTS})}),
        r"holds several data sets \(train\): give one, such as \['train'\]",
    ),
    "a matrix too many": ([{"input_ids": IDS[None]}], r"input_ids is \[1, 20, 12\], and a batch of it has 2 axes"),
    "one number": (3, "calibration is int: give texts"),
    "blanks": (["", "  "], "calibration is empty"),
    "an empty batch": ([{"input_ids": IDS[:0]}], r"input_ids is \[0, 12\]"),
    "a table without texts": (FRAME[["number"]], "has no column of texts; name one of its columns .*: number"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_refused(what):
    given, message = REFUSED[what]
    with pytest.raises(DataError, match=message) as caught:
        fuse_model(tiny_model("bert", SEQUENCE), FusionConfig(width=WIDTH), calibration=given, tokenizer=TOKENIZER)
    assert "\n" not in str(caught.value)


def test_measures_refuse_texts():
    model = tiny_model("bert")
    with pytest.raises(DataError, match="item 1 is a text: a measure needs batches"):
        list(as_batches(model, TEXTS))


# Next to nothing


def test_too_few_tokens_are_said():
    model = tiny_model("bert", SEQUENCE)
    with pytest.warns(FusionWarning, match=r"layer.0 \(and 2 other FFNs\) saw 8 calibration tokens for 32 units"):
        fused = fuse_model(model, FusionConfig(width=32), calibration=["w1 w2 w3 w4 w5 w6"], tokenizer=TOKENIZER)
    assert [ffn.calibration_error for ffn in fused.fusion_report.ffns] == [None] * 3  # nothing to tell it by
    assert "calibration tokens" in fused.fusion_report.warnings[-1]


def test_the_error_is_that_on_rows_that_were_not_calibrated_on():
    """It is what a run over these rows finds, and no better for little data."""
    model = tiny_model("bert", SEQUENCE)
    generator = torch.Generator().manual_seed(0)
    many = [{"input_ids": torch.randint(5, 90, (17, TOKENS), generator=generator)} for _ in range(10)]
    config = FusionConfig(width=32, layers=[0], ntk="none")
    fused = fuse_model(model, config, calibration=many)
    _, held_out = hold_out(many)
    before, after = next(find_ffns(model)), next(find_ffns(fused))
    with torch.no_grad():
        states = torch.cat([model.bert(**batch, output_hidden_states=True).hidden_states[0] for batch in held_out])
        inputs = model.bert.encoder.layer[0].attention(states)[0]
        wanted, found = before.outputs(inputs).double(), after.outputs(inputs).double()
    error = (wanted - found).norm() / (wanted - wanted.mean((0, 1))).norm()
    reported = fused.fusion_report.ffns[0].calibration_error
    assert reported == pytest.approx(error.item(), rel=1e-3)
    few = fuse_model(model, config, calibration=many[:1])
    assert few.fusion_report.ffns[0].calibration_error > reported
