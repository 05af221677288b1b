"""Neighbours that go by a class's or a config's name: the fused class gets what its stock class gets."""

import json
import logging

import pytest
import torch
import transformers
from any_family import every_family, main_head, tiny_family_model
from conftest import model_inputs, tiny_model
from peft import AdaptionPromptConfig, LoraConfig, get_peft_model
from tiny_text import tiny_tokenizer
from transformers import AutoTokenizer, Trainer, TrainingArguments
from transformers.modelcard import TrainingSummary
from transformers.models.auto import modeling_auto

from hf_mlp_fusion import FusionConfig, fuse_model
from hf_mlp_fusion.families import FAMILIES
from hf_mlp_fusion.families.compat import auto_models_of
from hf_mlp_fusion.modeling.classes import fused_class

WHOLE = FusionConfig(width=64)  # each unit a cluster of its own: the stock model's function
HEADS = {
    "GPT2LMHeadModel": ("gpt2", {}),
    "BertLMHeadModel": ("bert", {"is_decoder": True}),
    "RobertaForCausalLM": ("roberta", {"is_decoder": True}),
    "BertForMaskedLM": ("bert", {}),
    "RobertaForSequenceClassification": ("roberta", {}),
}


def smoothed_loss(model, folder):
    ids = model_inputs(model, batch=4)["input_ids"]
    labels = ids if model(ids).logits.dim() == 3 else ids[:, 0] % 2
    data = [{"input_ids": row, "labels": label} for row, label in zip(ids, labels, strict=True)]
    arguments = TrainingArguments(str(folder), label_smoothing_factor=0.1, use_cpu=True, report_to=[])
    return Trainer(model, arguments, eval_dataset=data).evaluate()["eval_loss"]


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("head", HEADS)
def test_label_smoothing(head, adapted, tmp_path):
    family, changes = HEADS[head]
    stock = tiny_model(family, getattr(transformers, head), **changes)
    fused = fuse_model(stock, WHOLE)
    if adapted:
        transposed = LoraConfig(r=2, fan_in_fan_out=family == "gpt2")
        stock, fused = get_peft_model(stock, transposed), get_peft_model(fused, transposed)
    assert smoothed_loss(fused, tmp_path) == pytest.approx(smoothed_loss(stock, tmp_path), rel=1e-6)


def test_every_table_of_class_names():
    """Each has, for each head of a family, the fused name wherever it has the stock one."""
    tables = {name: table for name, table in vars(modeling_auto).items() if name.endswith("_MAPPING_NAMES")}
    fused = tiny_family_model(FAMILIES["whisper"]), tiny_family_model(FAMILIES["gpt2"])
    for model in fused:
        fuse_model(model, FusionConfig(width=32))
        for name, table in tables.items():
            stock = table.get(model.config.model_type)
            assert table.get(f"fused_{model.config.model_type}") == (stock and f"Fused{stock}"), name


@pytest.mark.parametrize("name", every_family())
def test_model_type_loss_and_generation(name):
    family = FAMILIES[name]
    model = tiny_family_model(family)
    fused = fuse_model(model, FusionConfig(width=0.5, multiple_of=1))
    assert fused.config.model_type == model.config.model_type
    assert type(fused.config).model_type == fused.config.to_dict()["model_type"] == f"fused_{name}"
    assert fused.loss_type == model.loss_type
    assert fused.main_input_name == model.main_input_name
    for _, head in auto_models_of(type(model.config)):
        cls = fused_class(head)
        for question in ("can_generate", "is_backend_compatible", "_can_set_attn_implementation"):
            if hasattr(head, question):
                assert getattr(cls, question)() == getattr(head, question)(), (head, question)


def test_whisper_generates_from_a_prompt_without_a_start_token():
    """By its config's type alone, generation puts no start token before what is given."""
    stock = tiny_family_model(FAMILIES["whisper"])
    fused = fuse_model(stock, WHOLE)
    given = {"decoder_input_ids": torch.tensor([[7, 8], [7, 9], [7, 8]])}
    start = torch.tensor(1)
    answers = [
        model._prepare_decoder_input_ids_for_generation(3, "input_features", dict(given), start)[0]
        for model in (stock, fused)
    ]
    assert answers[0].equal(given["decoder_input_ids"])
    assert answers[1].equal(answers[0])


@pytest.mark.parametrize("name", ["whisper", "wav2vec2"])
def test_speech_pipelines(name):
    from transformers.pipelines import AutomaticSpeechRecognitionPipeline

    head = main_head(FAMILIES["whisper"]) if name == "whisper" else transformers.Wav2Vec2ForCTC
    stock = tiny_family_model(FAMILIES[name], head)
    extractor = (
        transformers.WhisperFeatureExtractor() if name == "whisper" else transformers.Wav2Vec2FeatureExtractor()
    )
    kinds = [
        AutomaticSpeechRecognitionPipeline(model, feature_extractor=extractor, tokenizer=tiny_tokenizer("gpt2")).type
        for model in (stock, fuse_model(stock, WHOLE))
    ]
    assert kinds == ["seq2seq_whisper" if name == "whisper" else "ctc"] * 2


@pytest.mark.parametrize(
    ("task", "family", "head"),
    [
        ("text-generation", "gpt2", "GPT2LMHeadModel"),
        ("fill-mask", "bert", "BertForMaskedLM"),
        ("token-classification", "roberta", "RobertaForTokenClassification"),
        ("text-classification", "bert", "BertForSequenceClassification"),
    ],
)
def test_pipelines_call_no_head_unsupported(task, family, head, monkeypatch, caplog):
    fused = fuse_model(tiny_model(family, getattr(transformers, head)), WHOLE)
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    transformers.pipeline(task, model=fused, tokenizer=tiny_tokenizer(family))
    assert "not supported" not in caplog.text


@pytest.mark.parametrize(("family", "task"), [("gpt2", "text-generation"), ("bert", "fill-mask")])
def test_trainers_card_names_the_task(family, task, tmp_path):
    fused = fuse_model(tiny_model(family), WHOLE)
    trainer = Trainer(fused, TrainingArguments(str(tmp_path), report_to=[]))
    assert TrainingSummary.from_trainer(trainer).tasks == task


def test_peft_method_that_goes_by_model_type():
    config = AdaptionPromptConfig(adapter_layers=1, adapter_len=2, task_type="CAUSAL_LM")
    adapted = get_peft_model(fuse_model(tiny_model("gpt2"), WHOLE), config)
    assert adapted(**model_inputs(adapted)).logits.isfinite().all()


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_tokenizers_without_a_config_of_their_own(family, tmp_path):
    """Only the model's config says what their class is."""
    stock = tiny_model(family)
    classes = []
    for number, model in enumerate((stock, fuse_model(stock, WHOLE))):
        folder = tmp_path / str(number)
        model.save_pretrained(folder)
        tiny_tokenizer(family).save_pretrained(folder)
        (folder / "tokenizer_config.json").unlink()
        classes.append(type(AutoTokenizer.from_pretrained(folder)))
    assert classes[0] is classes[1]


@pytest.mark.parametrize("name", ["vit", "whisper"])
def test_processors_whose_file_names_no_class(name, tmp_path):
    auto = transformers.AutoImageProcessor if name == "vit" else transformers.AutoFeatureExtractor
    stock = tiny_family_model(FAMILIES[name])
    classes = []
    for number, model in enumerate((stock, fuse_model(stock, WHOLE))):
        folder = tmp_path / str(number)
        model.save_pretrained(folder)
        (folder / "preprocessor_config.json").write_text(json.dumps({}))
        classes.append(type(auto.from_pretrained(folder)))
    assert classes[0] is classes[1]
