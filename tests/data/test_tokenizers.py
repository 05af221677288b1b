"""Tokenizers come from where the model came from, and one that transformers makes up is none."""

import shutil

import huggingface_hub
import pytest
import transformers
from any_family import every_family, tiny_config
from conftest import tiny_model
from tiny_text import WORDS, tiny_tokenizer
from transformers import AutoModelForMaskedLM

from hf_mlp_fusion import FusionConfig, fuse_model
from hf_mlp_fusion.data import load_tokenizer
from hf_mlp_fusion.errors import DataError, FusionConfigError
from hf_mlp_fusion.families import FAMILIES

CONFIG = FusionConfig(width=16)
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A Hub cache with a BERT whose tokenizer is a vocab.txt alone, and no network."""
    place = tmp_path / "cache" / "models--some--bert"
    tiny_model("bert").save_pretrained(place / "snapshots" / ("a" * 40))
    (place / "snapshots" / ("a" * 40) / "vocab.txt").write_text("\n".join(SPECIAL + WORDS))
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("a" * 40)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize("name", every_family())
def test_one_that_is_made_up_is_none(name, tmp_path):
    tiny_config(FAMILIES[name]).save_pretrained(tmp_path)
    with pytest.raises(DataError, match=r"has no tokenizer.*texts need one.*pass tokenizer=") as caught:
        load_tokenizer(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_offline_without_tokenizer_json(cache):
    assert load_tokenizer("some/bert").convert_tokens_to_ids("w0") == 5
    fused = fuse_model(AutoModelForMaskedLM.from_pretrained("some/bert"), CONFIG, calibration=["w1 w2 w3"] * 200)
    assert fused.fusion_report.ffns[0].tokens > 0


def test_another_cache(cache, tmp_path, monkeypatch):
    """Which cache it was is not noted in a model: the message says what to pass."""
    shutil.move(cache, tmp_path / "elsewhere")
    model = AutoModelForMaskedLM.from_pretrained("some/bert", cache_dir=tmp_path / "elsewhere")
    with pytest.raises(DataError, match="pass tokenizer="):
        fuse_model(model, CONFIG, calibration=["w1 w2"])
    tokenizer = transformers.AutoTokenizer.from_pretrained("some/bert", cache_dir=tmp_path / "elsewhere")
    fused = fuse_model(model, CONFIG, calibration=["w1 w2 w3"] * 200, tokenizer=tokenizer)
    assert fused.fusion_report.ffns[0].tokens > 0


def test_a_subfolder(tmp_path):
    tiny_model("bert").save_pretrained(tmp_path / "sub")
    tiny_tokenizer("bert").save_pretrained(tmp_path / "sub")
    model = AutoModelForMaskedLM.from_pretrained(tmp_path, subfolder="sub")
    with pytest.raises(DataError, match="pass tokenizer="):
        fuse_model(model, CONFIG, calibration=["w1 w2"])


def test_a_model_from_nowhere_and_a_mistyped_place():
    with pytest.raises(DataError, match="pass tokenizer="):
        fuse_model(tiny_model("bert"), CONFIG, calibration=["w1 w2"])
    with pytest.raises(FusionConfigError, match="can be no Hub id"):
        load_tokenizer("two words")


def test_code_of_others_is_not_run(tmp_path):
    tiny_model("bert").save_pretrained(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": ["evil.Evil", null]}}')
    (tmp_path / "evil.py").write_text("raise SystemExit('ran')")
    with pytest.raises(DataError, match="pass tokenizer="):
        load_tokenizer(str(tmp_path))
