"""The models that PEFT's own suite loads, as tiny local ones: stock, or each fused.

The suite takes ids of the Hub, which are relative paths as well: run in the folder that this fills, it finds there
what it asks the Hub for.
"""

from __future__ import annotations

import sys

# By head, the ids that PEFT's tests load with it. Others (families that cannot be fused, further adapters, diffusion)
# stay on the Hub: their tests are left out, or fail for stock and fused alike.
MODELS = {
    "BartForConditionalGeneration": ["peft-internal-testing/tiny-random-BartForConditionalGeneration"],
    "BertForSequenceClassification": ["peft-internal-testing/tiny-random-BertForSequenceClassification"],
    "BertModel": ["peft-internal-testing/tiny-random-BertModel", "hf-internal-testing/tiny-random-BertModel"],
    "BloomForCausalLM": ["peft-internal-testing/tiny-random-BloomForCausalLM"],
    "DebertaV2Model": ["peft-internal-testing/tiny-random-DebertaV2Model"],
    "GPT2LMHeadModel": [
        "peft-internal-testing/tiny-random-GPT2LMHeadModel",
        "peft-internal-testing/tiny-random-gpt2",
        "hf-internal-testing/tiny-random-gpt2",
    ],
    "GPTJForCausalLM": ["peft-internal-testing/tiny-random-GPTJForCausalLM"],
    "GPTNeoXForCausalLM": ["peft-internal-testing/tiny-random-GPTNeoXForCausalLM"],
    "Gemma3ForCausalLM": ["hf-internal-testing/tiny-random-Gemma3ForCausalLM"],
    "LlamaForCausalLM": [
        "hf-internal-testing/tiny-random-LlamaForCausalLM",
        "peft-internal-testing/tiny-random-LlamaForCausalLM",
        "trl-internal-testing/tiny-random-LlamaForCausalLM",
    ],
    "LlamaForSequenceClassification": ["trl-internal-testing/tiny-LlamaForSequenceClassification-3.2"],
    "MistralForCausalLM": ["hf-internal-testing/tiny-random-MistralForCausalLM"],
    "OPTForCausalLM": ["peft-internal-testing/tiny-random-OPTForCausalLM", "peft-internal-testing/opt-125m"],
    "Qwen2ForCausalLM": ["peft-internal-testing/tiny-dummy-qwen2"],
    "Qwen3ForCausalLM": ["trl-internal-testing/tiny-Qwen3ForCausalLM"],
    "RobertaForSequenceClassification": ["peft-internal-testing/tiny-random-RobertaForSequenceClassification"],
    "RobertaModel": ["peft-internal-testing/tiny-random-RobertaModel"],
    "T5ForConditionalGeneration": [
        "google/flan-t5-small",
        "peft-internal-testing/tiny-random-T5ForConditionalGeneration",
        "peft-internal-testing/tiny-random-T5ForConditionalGeneration-calibrated",
        "peft-internal-testing/tiny-random-t5",
    ],
}

# Adapters, by their ids: the task that each is for, and the model that it was made on.
OPT = "peft-internal-testing/tiny-random-OPTForCausalLM"
GPT2 = "peft-internal-testing/tiny-random-GPT2LMHeadModel"
T5 = "peft-internal-testing/tiny-random-t5"
ADAPTERS = {
    "peft-internal-testing/tiny-OPTForCausalLM-lora": ("CAUSAL_LM", "AutoModelForCausalLM", OPT),
    "peft-internal-testing/tiny_GPT2ForTokenClassification-lora": (
        "TOKEN_CLS",
        "AutoModelForTokenClassification",
        GPT2,
    ),
    "peft-internal-testing/tiny_OPTForFeatureExtraction-lora": ("FEATURE_EXTRACTION", "AutoModel", OPT),
    "peft-internal-testing/tiny_OPTForQuestionAnswering-lora": ("QUESTION_ANS", "AutoModelForQuestionAnswering", OPT),
    "peft-internal-testing/tiny_OPTForSequenceClassification-lora": (
        "SEQ_CLS",
        "AutoModelForSequenceClassification",
        OPT,
    ),
    "peft-internal-testing/tiny_T5ForSeq2SeqLM-lora": ("SEQ_2_SEQ_LM", "AutoModelForSeq2SeqLM", T5),
}
IDS = [*(model_id for ids in MODELS.values() for model_id in ids), *ADAPTERS]


def fill(*, fused: bool) -> None:
    """Saves each model in the working folder under its id, with a tokenizer, and the adapters.

    Args:
        fused: Whether each model is fused before.
    """
    # Not for `run.py`, which reads the ids.
    import transformers
    from any_family import tiny_family_model
    from peft import LoraConfig, get_peft_model
    from tiny_text import tiny_tokenizer

    from hf_mlp_fusion import FusionConfig, fuse_model
    from hf_mlp_fusion.families import family_of

    for name, ids in MODELS.items():
        head = getattr(transformers, name)
        model = tiny_family_model(family_of(head.config_class), head, vocab_size=1000)
        if fused:
            model = fuse_model(model, FusionConfig(width=32, targets="all"))
        for model_id in ids:
            model.save_pretrained(model_id)
            tiny_tokenizer("gpt2").save_pretrained(model_id)
    for adapter_id, (task, auto, model_id) in ADAPTERS.items():
        model = getattr(transformers, auto).from_pretrained(model_id)
        get_peft_model(model, LoraConfig(task_type=task)).save_pretrained(adapter_id)


if __name__ == "__main__":
    fill(fused=sys.argv[1] == "fused")
