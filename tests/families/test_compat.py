"""Fails first, and says where, when a semi-private name of transformers or torch that we rely on moves."""

import inspect

import accelerate
import huggingface_hub
import torch
import transformers
from safetensors import safe_open
from transformers import PreTrainedModel
from transformers import initialization as init

from hf_mlp_fusion.families.compat import auto_model_classes


def test_auto_mappings():
    found = {auto.__name__: mapping for auto, mapping in auto_model_classes()}
    assert {"AutoModel", "AutoModelForMaskedLM", "AutoModelForCausalLM", "AutoModelForSeq2SeqLM"} <= set(found)
    assert found["AutoModelForMaskedLM"][transformers.BertConfig] is transformers.BertForMaskedLM


def test_models_call_post_init_when_their_modules_exist(monkeypatch):
    seen = []
    monkeypatch.setattr(PreTrainedModel, "post_init", lambda self: seen.append([n for n, _ in self.named_children()]))
    transformers.GPT2LMHeadModel(transformers.GPT2Config(n_layer=1, n_embd=4, n_head=1, vocab_size=5))
    assert seen[-1] == ["transformer", "lm_head"]


def test_initialize_weights_is_called_and_init_skips_loaded_tensors(monkeypatch):
    called = []
    monkeypatch.setattr(PreTrainedModel, "initialize_weights", lambda self: called.append(self))
    transformers.GPT2Model(transformers.GPT2Config(n_layer=1, n_embd=4, n_head=1, vocab_size=5))
    assert called
    loaded = torch.zeros(2)
    loaded._is_hf_initialized = True
    assert init.copy_(loaded, torch.ones(2)).tolist() == [0.0, 0.0]
    assert init.copy_(torch.zeros(2), torch.ones(2)).tolist() == [1.0, 1.0]


def test_tokenizer_mapping():
    from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING

    assert TOKENIZER_MAPPING.get(transformers.BertConfig, None) is transformers.BertTokenizer


def test_model_class_names_by_task():
    from transformers.models.auto import modeling_auto

    assert "GPT2LMHeadModel" in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
    assert "BertForMaskedLM" in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES.values()
    names = modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES.values()
    assert "SwitchTransformersForConditionalGeneration" in names


def test_cached_file_may_miss():
    from transformers.utils.hub import cached_file

    assert cached_file(".", "no such file", _raise_exceptions_for_missing_entries=False) is None


def test_accelerate_marks_the_models_that_it_places():
    model = torch.nn.Linear(1, 1)
    assert not hasattr(model, "_hf_hook")
    assert hasattr(accelerate.cpu_offload(model, torch.device("cpu")), "_hf_hook")


def test_trainer_prepares_inputs():
    assert list(inspect.signature(transformers.Trainer._prepare_inputs).parameters) == ["self", "inputs"]


def test_cached_files(tmp_path):
    from transformers.utils.hub import cached_files

    (tmp_path / "a").write_text("")
    assert cached_files(str(tmp_path), ["a"]) == [str(tmp_path / "a")]


def test_pushing_ends_in_the_upload_of_changed_files():
    """The receipt and the card are written just before; that they come along is tested in `hub/test_round_trip.py`."""
    parameters = list(inspect.signature(PreTrainedModel._upload_modified_files).parameters)
    assert parameters[:4] == ["self", "working_dir", "repo_id", "files_timestamps"]


def test_load_state_dict_hook():
    parameters = list(inspect.signature(torch.nn.Module._load_from_state_dict).parameters)
    assert parameters[:3] == ["self", "state_dict", "prefix"]


def test_tables_of_peft():
    """Rows that are added to the tables are those that the methods look up, by `model_type`."""
    from peft.tuners.ia3 import model as ia3
    from peft.tuners.lora import LoraModel
    from peft.utils import constants

    assert LoraModel.target_module_mapping is constants.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    assert {"bert", "roberta", "gpt2", "t5"} <= set(LoraModel.target_module_mapping)
    for name in ("IA3_TARGET_MODULES", "IA3_FEEDFORWARD_MODULES"):
        table = f"TRANSFORMERS_MODELS_TO_{name}_MAPPING"
        assert getattr(ia3, table) is getattr(constants, table)
    tables = [table for name, table in vars(constants).items() if name.startswith("TRANSFORMERS_MODELS_TO_")]
    assert len(tables) > 20
    assert all(isinstance(table, dict) for table in tables)


def test_an_implementation_is_settable_by_what_the_class_says():
    assert transformers.LlamaForCausalLM._can_set_attn_implementation()
    assert not transformers.LlamaForCausalLM._can_set_experts_implementation()
    assert transformers.MixtralForCausalLM._can_set_experts_implementation()


def test_what_a_device_map_must_not_split():
    sizes = {"vocab_size": 5, "n_embd": 4, "n_layer": 1, "n_head": 1}
    assert "GPT2Block" in transformers.GPT2Model(transformers.GPT2Config(**sizes))._no_split_modules


def test_saving_goes_by_weight_conversions(tmp_path):
    """Without any, the names are those of the modules; None stands for the stock class's own."""
    sizes = {"hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    model = transformers.ViTModel(transformers.ViTConfig(**sizes, image_size=4, patch_size=2))
    names = []
    for conversions in ([], None):
        model._weight_conversions = conversions
        model.save_pretrained(tmp_path)
        with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
            names.append(set(file.keys()))
    assert names[0] == set(model.state_dict())
    assert names[1] != names[0]


def test_loading_says_how_it_converts(tmp_path):
    """Also where nothing is read: what the checkpoint's names become, and what makes one tensor of several."""
    from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

    sizes = {"hidden_size": 8, "intermediate_size": 4, "num_local_experts": 2, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 1, "num_key_value_heads": 1, "vocab_size": 5}
    transformers.MixtralForCausalLM(transformers.MixtralConfig(**sizes, **heads)).save_pretrained(tmp_path)
    model = transformers.MixtralForCausalLM.from_pretrained(tmp_path, device_map={"": "meta"})
    assert all(tensor.is_meta for tensor in model.state_dict().values())
    transforms = model._weight_conversions
    renamings = [item for item in transforms if isinstance(item, WeightRenaming)]
    converters = [item for item in transforms if isinstance(item, WeightConverter)]
    name = "model.layers.0.block_sparse_moe.experts.1.w2.weight"
    target, pattern = rename_source_key(name, renamings, converters, model.base_model_prefix, model.state_dict())
    assert target == "model.layers.0.mlp.experts.down_proj"
    converter = next(item for item in converters if pattern in item.source_patterns)
    for number in range(2):
        converter.add_tensor(target, name, pattern, lambda number=number: torch.full((8, 4), float(number)))
    made = converter.convert(target, model=model, config=model.config)
    made = {name: item[0] if isinstance(item, list) else item for name, item in made.items()}
    assert made[target].shape == (2, 8, 4)
    assert made[target][1].eq(1).all()
    assert sorted(["a.10", "a.9"], key=dot_natural_key) == ["a.9", "a.10"]


def test_of_tied_weights_one_is_saved():
    from transformers.modeling_utils import remove_tied_weights_from_state_dict

    config = transformers.GPT2Config(n_layer=1, n_embd=4, n_head=1, vocab_size=5)
    with torch.device("meta"):
        model = transformers.GPT2LMHeadModel(config)
    assert model.all_tied_weights_keys == {"lm_head.weight": "transformer.wte.weight"}
    left = remove_tied_weights_from_state_dict(model.state_dict(), model)
    assert set(model.state_dict()) - set(left) == {"lm_head.weight"}
    assert hasattr(model, "_keys_to_ignore_on_save")


def test_what_stacks_of_experts_say_of_themselves():
    from transformers.integrations import moe
    from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts
    from transformers.models.mixtral.modeling_mixtral import MixtralExperts

    sizes = {"hidden_size": 8, "intermediate_size": 4, "num_local_experts": 2}
    plain = MixtralExperts(transformers.MixtralConfig(**sizes))
    other = GptOssExperts(transformers.GptOssConfig(**sizes))
    for host, said in ((plain, (True, False, False, True)), (other, (True, True, True, False))):
        assert (host.has_gate, host.has_bias, host.is_transposed, host.is_concatenated) == said
    assert MixtralExperts._apply_gate.__module__ == moe.use_experts_implementation.__module__ == moe.__name__
    assert GptOssExperts._apply_gate.__module__ == GptOssExperts.__module__
    gate, up = torch.randn(2, 1, 4)
    assert plain._apply_gate(torch.cat([gate, up], -1)).equal(plain.act_fn(gate) * up)
    for name in ("batched_mm", "grouped_mm"):  # whose second argument tells the experts of each token
        run = moe.ALL_EXPERTS_FUNCTIONS[name]
        assert list(inspect.signature(run).parameters) == ["self", "hidden_states", "top_k_index", "top_k_weights"]


def test_runners_of_experts_ask_for_the_bias_of_each_row():
    """Before the gate, which is given rows in the same order; None is none."""
    from transformers.integrations import moe
    from transformers.models.mixtral.modeling_mixtral import MixtralExperts

    class Bias:
        def __getitem__(self, experts):
            asked.append(experts.tolist())

    sizes = {"hidden_size": 8, "intermediate_size": 4, "num_local_experts": 2}
    stack = MixtralExperts(transformers.MixtralConfig(**sizes))
    torch.nn.init.normal_(stack.gate_up_proj), torch.nn.init.normal_(stack.down_proj)
    stack.act_fn = torch.nn.Identity()
    arguments = torch.ones(2, 8), torch.tensor([[1], [0]]), torch.ones(2, 1)
    for name, order in (("batched_mm", [1, 0]), ("grouped_mm", [0, 1])):
        asked: list = []
        stack.has_bias = False
        expected = moe.ALL_EXPERTS_FUNCTIONS[name](stack, *arguments)
        stack.has_bias, stack.gate_up_proj_bias, stack.down_proj_bias = True, Bias(), Bias()
        assert moe.ALL_EXPERTS_FUNCTIONS[name](stack, *arguments).equal(expected)
        assert asked == [order, order]


def test_errors_of_the_hub_and_of_its_client_have_a_base():
    """Whichever client it has; `tests/hub/test_refused.py` has one that cannot connect."""
    assert issubclass(huggingface_hub.errors.HfHubHTTPError, huggingface_hub.errors.HTTPError)
    assert huggingface_hub.errors.HTTPError.__module__.startswith("httpx")


def test_functorch_tells_when_it_transforms():
    seen = []

    def look(number):
        seen.append(torch._C._are_functorch_transforms_active())
        return number

    look(torch.zeros(1))
    torch.func.vmap(look)(torch.zeros(1))
    assert seen == [False, True]
    rows = torch.zeros(3, 2)
    torch._dynamo.maybe_mark_dynamic(rows, 0)  # a hint alone: nothing fails where it cannot be
