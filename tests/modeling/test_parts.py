"""Fused models as parts of others, and adapters of models that lie nowhere."""

import copy
import logging

import pytest
import torch
import transformers
from conftest import tiny_model
from peft import LoraConfig, get_peft_model

from hf_mlp_fusion import FusionConfig, fuse_model

CONFIG = FusionConfig(width=16)
IDS = torch.arange(5, 14)[None]


def _encoder():
    return tiny_model("bert", transformers.BertModel)


def _decoder():
    return tiny_model("bert", transformers.BertLMHeadModel, is_decoder=True, add_cross_attention=True)


def _logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=IDS, decoder_input_ids=IDS).logits


@pytest.mark.parametrize("which", ["encoder", "decoder", "both"])
def test_composed_of_fused_parts(which, tmp_path):
    encoder = fuse_model(_encoder(), CONFIG) if which != "decoder" else _encoder()
    decoder = fuse_model(_decoder(), CONFIG) if which != "encoder" else _decoder()
    model = transformers.EncoderDecoderModel(encoder=encoder, decoder=decoder)
    model.save_pretrained(tmp_path)
    again = transformers.EncoderDecoderModel.from_pretrained(tmp_path)
    assert type(again.encoder) is type(encoder)
    assert type(again.decoder) is type(decoder)
    assert _logits(again).equal(_logits(model))


def test_a_part_that_is_fused_in_its_place(tmp_path):
    """The whole does not know of it: what it saves is refused at loading, until its config is told."""
    model = transformers.EncoderDecoderModel(encoder=_encoder(), decoder=_decoder())
    model.encoder = fuse_model(model.encoder, CONFIG)
    model.save_pretrained(tmp_path / "untold")
    with pytest.raises(RuntimeError, match="mismatch"):
        transformers.EncoderDecoderModel.from_pretrained(tmp_path / "untold")
    model.config.encoder = model.encoder.config
    model.save_pretrained(tmp_path / "told")
    again = transformers.EncoderDecoderModel.from_pretrained(tmp_path / "told")
    assert _logits(again).equal(_logits(model))


def _adapt(model, path):
    get_peft_model(model, LoraConfig(r=2)).save_pretrained(path)


def test_an_adapter_of_a_model_that_lies_nowhere_is_told_once(tmp_path, caplog):
    fused = fuse_model(tiny_model("bert"), CONFIG)
    with caplog.at_level(logging.WARNING, "hf_mlp_fusion"):
        fused.save_pretrained(tmp_path / "fused")
        assert "names none" not in caplog.text
        _adapt(copy.deepcopy(fused), tmp_path / "adapter")
        assert caplog.text.count("the adapter names none: save the fused model, load it with from_pretrained") == 1
        caplog.clear()
        _adapt(type(fused).from_pretrained(tmp_path / "fused"), tmp_path / "other")
        assert "names none" not in caplog.text
