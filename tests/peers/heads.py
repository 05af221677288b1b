"""transformers' own tests of model classes, on the heads of some families: stock, or the fused ones of them.

transformers' source distribution has the tests that all its models share (`ModelTesterMixin`), but not the files that
apply them to each model (`tests/models`): that is done here.
"""

from __future__ import annotations

import inspect
import os
import unittest

import torch
import transformers
from any_family import inputs_of_any, main_head, tiny_config, tiny_family_model
from tests.test_training_mixin import TrainingTesterMixin

from hf_mlp_fusion import FusionConfig, fuse_model
from hf_mlp_fusion.families import FAMILIES
from hf_mlp_fusion.families.compat import auto_models_of
from hf_mlp_fusion.modeling.classes import fused_class
from tests import test_modeling_common as common

TESTED = ("bert", "roberta", "gpt2", "t5", "switch_transformers", "llama", "bart", "opt", "qwen2", "distilbert")
FUSED = os.environ["PEERS_MODELS"] == "fused"


class Sizes:
    """What the shared tests ask of each model: a config, inputs for it, and some of its sizes."""

    batch_size, seq_length, num_choices = 7, 9, 2
    hidden_size, num_hidden_layers, num_attention_heads = 16, 2, 2
    is_training = True

    def __init__(self, family):
        self.family = family
        self.model = tiny_family_model(family)
        self.config = tiny_config(family)
        if FUSED:
            self.config = fuse_model(self.model, FusionConfig(width=32, targets="all")).config

    def get_config(self):
        """A config, a new one at each call."""
        return type(self.config).from_dict(self.config.to_dict())

    def prepare_config_and_inputs_for_common(self):
        """A config, and inputs for a model of it."""
        inputs = inputs_of_any(self.model, self.batch_size, self.seq_length)
        if "input_ids" in inputs:
            inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        if "decoder_input_ids" in inputs:
            inputs["input_ids"][:, -1] = self.config.eos_token_id  # classifiers look for it
            inputs["decoder_input_ids"] = inputs["input_ids"].clone()  # labels are as long
        return self.get_config(), inputs


def suite(family):
    """The tests of a family.

    Args:
        family: The family.
    """
    main = main_head(family)
    heads = dict.fromkeys(
        head
        for _, head in auto_models_of(getattr(transformers, family.config_class))
        if head.main_input_name == main.main_input_name  # and not one half of a model of two
        if "decoder_input_ids" in inspect.signature(head.forward).parameters
        or not tiny_config(family).is_encoder_decoder
    )

    class Suite(common.ModelTesterMixin, TrainingTesterMixin, unittest.TestCase):
        all_model_classes = tuple(fused_class(head) if FUSED else head for head in heads)
        is_encoder_decoder = tiny_config(family).is_encoder_decoder
        model_tester = None
        # Also of older models. It is told by the year in the head of the config's file, and fused ones have none.
        test_can_init_all_missing_weights_before_2023 = True

        def setUp(self):
            self.model_tester = Sizes(family)
            self.model_tester.causal_lm_class = fused_class(main) if FUSED else main

        def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
            inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels=return_labels)
            if return_labels and model_class.__name__.endswith("BertForPreTraining"):  # as in its own tests
                inputs["labels"] = torch.zeros_like(inputs["input_ids"])
                inputs["next_sentence_label"] = torch.zeros(len(inputs["input_ids"]), dtype=torch.long)
            return inputs

    Suite.__name__ = Suite.__qualname__ = f"Test_{family.model_type}"
    return Suite


for _name in TESTED:
    globals()[f"Test_{_name}"] = suite(FAMILIES[_name])
