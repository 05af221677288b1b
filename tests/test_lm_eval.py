"""A fused language model in lm-evaluation-harness, by the one line that its command line needs."""

import json
import os
import subprocess
import sys

import pytest
import torch
from benchmarks.choices import write_task
from conftest import tiny_model
from tiny_text import tiny_texts, tiny_tokenizer

from hf_mlp_fusion import FusionConfig, fuse_model

# Instead of `lm_eval run ...`: the harness has no option that imports a package.
LINE = "import hf_mlp_fusion; from lm_eval.__main__ import cli_evaluate; cli_evaluate()"


@pytest.mark.every
def test_lm_eval_sees_the_fused_model(tmp_path):
    pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed: pip install 'lm_eval[hf]'")
    model, tokenizer = fuse_model(tiny_model("gpt2"), FusionConfig(width=16)), tiny_tokenizer("gpt2")
    model.save_pretrained(tmp_path / "fused")
    tokenizer.save_pretrained(tmp_path / "fused")
    rows = [{"start": text, "ends": ["w1", "w2"], "label": index % 2} for index, text in enumerate(tiny_texts(6))]
    (tmp_path / "tasks").mkdir()
    write_task(tmp_path / "tasks", "tiny", rows, "acc")
    options = "run --model hf --model_args pretrained=fused --tasks tiny --include_path tasks --device cpu"
    command = [sys.executable, "-c", LINE, *options.split(), "--log_samples", "--output_path", "results"]
    environment = os.environ | {"HF_HOME": str(tmp_path / "home")}
    subprocess.run(command, check=True, cwd=tmp_path, env=environment, capture_output=True)

    right = 0
    (samples,) = (tmp_path / "results").rglob("samples_tiny_*.jsonl")
    for sample in map(json.loads, samples.read_text().splitlines()):
        ids = torch.tensor([tokenizer(sample["doc"]["start"]).input_ids])
        with torch.no_grad():
            logits = model(ids).logits[0, -1].log_softmax(-1)
        expected = logits[tokenizer.convert_tokens_to_ids(["w1", "w2"])]
        found = [float(likelihood) for likelihood, _ in sample["filtered_resps"]]
        torch.testing.assert_close(torch.tensor(found), expected, rtol=1e-4, atol=1e-4)
        right += int(expected.argmax()) == sample["doc"]["label"]
    (results,) = (tmp_path / "results").rglob("results_*.json")
    assert json.loads(results.read_text())["results"]["tiny"]["acc,none"] == pytest.approx(right / 6)
