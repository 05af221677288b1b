"""Makes a small mixture of experts of a dense Llama: a Mixtral whose experts start as noisy copies of its FFNs.

    python tests/benchmarks/upcycle.py OUT --source smollm2-135m-instruct --texts FILE [--column NAME]
        [--experts 8] [--top-k 2] [--layers 30] [--noise 0.3] [--drop 0.0] [--steps 2000] [--batch-size 32]
        [--length 256] [--learning-rate 2e-4] [--balance 0.02] [--device cuda] [--seed 0]

Without noise and training the mixture computes what the dense model does. `--noise` is relative to a weight's standard
deviation; `--drop` draws that share of each expert's units anew, as drop-upcycling does (arXiv 2502.19261). `--layers`
keeps the first so many layers alone. OUT gets the model (bfloat16), the tokenizer, and a card that says what it is.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from torch import nn
from transformers import (
    AutoTokenizer,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    get_cosine_schedule_with_warmup,
)

from hf_mlp_fusion.data import read_texts


def main() -> None:
    """Makes, trains and saves it; prints the loss as it goes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--source", required=True)
    parser.add_argument("--texts", required=True)
    parser.add_argument("--column")
    parser.add_argument("--experts", type=int, default=8)
    parser.add_argument("--top-k", type=int, default=2)
    parser.add_argument("--layers", type=int)
    parser.add_argument("--noise", type=float, default=0.3)
    parser.add_argument("--drop", type=float, default=0.0)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    parser.add_argument("--balance", type=float, default=0.02)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    tokenizer = AutoTokenizer.from_pretrained(options.source)
    model = mixture(LlamaForCausalLM.from_pretrained(options.source, dtype=torch.float32), options).to(options.device)
    print(
        f"{model.num_parameters():,} parameters, {options.experts} experts in each of {len(model.model.layers)} layers"
    )
    tokens = token_stream(tokenizer, read_texts(options.texts, column=options.column))
    print(f"{len(tokens):,} tokens of text")
    loss = train(model, tokens, options)
    model.set_experts_implementation("grouped_mm")
    model.config.output_router_logits = False
    model.to(torch.bfloat16).save_pretrained(options.out)
    tokenizer.save_pretrained(options.out)
    (options.out / "README.md").write_text(card(options, loss), encoding="utf-8")


def mixture(dense: LlamaForCausalLM, options: argparse.Namespace) -> MixtralForCausalLM:
    """The Mixtral that a Llama becomes."""
    layers = options.layers or dense.config.num_hidden_layers
    own = ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim")
    own += ("max_position_embeddings", "rms_norm_eps", "rope_parameters", "tie_word_embeddings", "hidden_act")
    own += ("bos_token_id", "eos_token_id", "pad_token_id")
    config = MixtralConfig(
        **{name: getattr(dense.config, name) for name in own},
        num_hidden_layers=layers,
        num_local_experts=options.experts,
        num_experts_per_tok=options.top_k,
        sliding_window=None,
        router_aux_loss_coef=options.balance,
        output_router_logits=True,
    )
    model = MixtralForCausalLM(config)
    state = {name: tensor for name, tensor in dense.state_dict().items() if ".mlp." not in name}
    state = {name: tensor for name, tensor in state.items() if name in model.state_dict()}
    missing = model.load_state_dict(state, strict=False).missing_keys
    assert all(".mlp." in name for name in missing), missing
    with torch.no_grad():
        for block, layer in zip(model.model.layers, dense.model.layers[:layers], strict=True):
            mlp, experts = layer.mlp, block.mlp.experts
            gate_up = torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight])
            for expert in range(options.experts):
                experts.gate_up_proj[expert] = noisy(gate_up, options.noise)
                experts.down_proj[expert] = noisy(mlp.down_proj.weight, options.noise)
                redraw(experts, expert, options.drop)
            block.mlp.gate.weight.normal_(std=config.initializer_range)
    return model


def noisy(weight: torch.Tensor, noise: float) -> torch.Tensor:
    """A weight with noise of a share of its own standard deviation."""
    return weight + noise * weight.std() * torch.randn_like(weight)


def redraw(experts: nn.Module, expert: int, share: float) -> None:
    """Draws some units of an expert anew, with the spread of its weights."""
    up, down = experts.gate_up_proj[expert], experts.down_proj[expert]
    units = torch.randperm(down.shape[1])[: round(share * down.shape[1])]
    for rows in (units, units + down.shape[1]):
        up[rows] = up.std() * torch.randn_like(up[rows])
    down[:, units] = down.std() * torch.randn_like(down[:, units])


def token_stream(tokenizer: object, texts: list[str]) -> torch.Tensor:
    """All texts in one row, an end of text behind each."""
    rows = tokenizer(texts, add_special_tokens=False)["input_ids"]  # type: ignore[operator]
    return torch.tensor([token for row in rows for token in (*row, tokenizer.eos_token_id)])  # type: ignore[attr-defined]


def train(model: MixtralForCausalLM, tokens: torch.Tensor, options: argparse.Namespace) -> float:
    """Trains on random windows, in bfloat16 by autocast on a GPU; returns the mean loss of the last steps."""
    model.set_experts_implementation("eager")  # autocast does not know grouped products of float32
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.learning_rate, weight_decay=0.01)
    schedule = get_cosine_schedule_with_warmup(optimizer, options.steps // 20, options.steps)
    model.train()
    losses: list[float] = []
    started = time.perf_counter()
    for step in range(options.steps):
        starts = torch.randint(0, max(1, len(tokens) - options.length), (options.batch_size,))
        batch = torch.stack([tokens[start : start + options.length] for start in starts]).to(options.device)
        with torch.autocast(options.device, torch.bfloat16, enabled=options.device != "cpu"):
            outputs = model(input_ids=batch, labels=batch)
        outputs.loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(float(outputs.loss.detach()))
        if step % 50 == 0 or step == options.steps - 1:
            taken = time.perf_counter() - started
            recent = losses[-50:]
            print(f"step {step}: loss {sum(recent) / len(recent):.3f}, {taken:.0f} s", flush=True)
    model.eval()
    return sum(losses[-50:]) / max(1, len(losses[-50:]))


def card(options: argparse.Namespace, loss: float) -> str:
    """What whoever finds the folder must know."""
    return (
        f"# A mixture of experts for tests, up-cycled from {Path(options.source).name}\n\n"
        f"A Mixtral of {options.experts} experts, top {options.top_k}. Each expert started as a copy of the dense "
        f"model's FFN with noise of {options.noise} standard deviations and {options.drop:.0%} of its units drawn "
        f"anew; all weights were then trained for {options.steps} steps of {options.batch_size} x {options.length} "
        f"tokens of `{Path(options.texts).name}` (seed {options.seed}, loss {loss:.3f}). It was made to compare ways "
        "to make experts smaller. Its experts are far more alike than those of models that were trained as mixtures, "
        "and it is of no other use.\n"
    )


if __name__ == "__main__":
    main()
