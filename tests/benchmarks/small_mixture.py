"""Trains a small mixture of experts from nothing, an OLMoE, so that its experts are no copies of one another.

    python tests/benchmarks/small_mixture.py OUT --texts TRAIN [--column NAME] [--device cuda] [--steps 2000]
        [--layers 6] [--hidden 256] [--width 256] [--experts 16] [--top-k 2] [--vocabulary 8192] [--batch-size 64]
        [--length 256] [--learning-rate 1e-3] [--balance 0.01] [--seed 0]

The tokenizer is a byte-level BPE trained on TRAIN. The loss of a fiftieth of the texts, which are not trained on, is
told as training goes, and the weights are kept with which it was least, for a few megabytes of text are soon learnt by
heart. On a GPU weights are bfloat16 beside the optimizer's own in float32. OUT gets the model, the tokenizer, and a
card that says what it is and how unlike its experts are: the mean cosine between what two experts of a layer make of
the same token (that of copies is 1), and the load of the busiest. `experts_quality.py OUT TEXTS` compares ways to make
it smaller.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import OlmoeConfig, OlmoeForCausalLM, PreTrainedTokenizerFast, get_cosine_schedule_with_warmup
from upcycle import token_stream

from hf_mlp_fusion.data import read_texts
from hf_mlp_fusion.measure import expert_load
from hf_mlp_fusion.modeling.find import by_entry, find_ffns
from hf_mlp_fusion.training import router_losses

END = "<|endoftext|>"


def main() -> None:
    """Makes, trains and saves it; prints losses as it goes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--texts", required=True)
    parser.add_argument("--column")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--experts", type=int, default=16)
    parser.add_argument("--top-k", type=int, default=2)
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--balance", type=float, default=0.01)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    texts = read_texts(options.texts, column=options.column)
    tokenizer = trained_tokenizer(texts, options.vocabulary)
    model = blank_mixture(tokenizer, options).to(options.device)
    order = torch.randperm(len(texts)).tolist()
    count = max(1, len(texts) // 50)
    held_out, own = (token_stream(tokenizer, [texts[i] for i in part]) for part in (order[:count], order[count:]))
    print(f"{model.num_parameters():,} parameters, {len(own):,} tokens of text, {len(held_out):,} held out")
    loss = train(model, own, windows(held_out, options.length)[: 2 * options.batch_size], options)
    model.float().set_experts_implementation("grouped_mm")
    alike, busiest = unlikeness(model, windows(held_out, options.length)[: options.batch_size])
    print(f"held-out loss {loss:.3f}; cosine between experts {alike:.3f}, busiest expert {busiest:.2f} times the mean")
    model.config.output_router_logits = False
    model.to(torch.bfloat16).save_pretrained(options.out)
    tokenizer.save_pretrained(options.out)
    (options.out / "README.md").write_text(card(options, loss, alike, busiest), encoding="utf-8")


def trained_tokenizer(texts: list[str], size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE of some texts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=END)


def blank_mixture(tokenizer: PreTrainedTokenizerFast, options: argparse.Namespace) -> OlmoeForCausalLM:
    """A mixture of random weights."""
    config = OlmoeConfig(
        vocab_size=len(tokenizer),
        hidden_size=options.hidden,
        intermediate_size=options.width,
        num_hidden_layers=options.layers,
        num_attention_heads=max(1, options.hidden // 64),
        num_experts=options.experts,
        num_experts_per_tok=options.top_k,
        norm_topk_prob=True,
        max_position_embeddings=max(512, options.length),
        tie_word_embeddings=True,
        router_aux_loss_coef=0.0,  # `router_losses` balances each layer by itself
        output_router_logits=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return OlmoeForCausalLM(config)


def windows(tokens: Tensor, length: int) -> Tensor:
    """Windows of a stream of tokens, one behind the other, `[windows, length]`."""
    length = min(length, len(tokens))
    return tokens[: len(tokens) // length * length].view(-1, length)


def train(model: OlmoeForCausalLM, tokens: Tensor, held_out: Tensor, options: argparse.Namespace) -> float:
    """Trains on random windows; leaves the weights of the least held-out loss, and returns that."""
    if options.device != "cpu":
        model.to(torch.bfloat16)
    model.set_experts_implementation("grouped_mm")
    parameters = list(model.parameters())
    masters = [nn.Parameter(parameter.detach().float().clone()) for parameter in parameters]
    optimizer = torch.optim.AdamW(masters, lr=options.learning_rate, betas=(0.9, 0.95), weight_decay=0.1)
    schedule = get_cosine_schedule_with_warmup(optimizer, options.steps // 20, options.steps)
    best, kept, losses = float("inf"), copy.deepcopy(model.state_dict()), []
    started = time.perf_counter()
    for step in range(1, options.steps + 1):
        starts = torch.randint(0, max(1, len(tokens) - options.length), (options.batch_size,))
        batch = {"input_ids": torch.stack([tokens[i : i + options.length] for i in starts]).to(options.device)}
        outputs = model.train()(**batch, labels=batch["input_ids"])
        balance = router_losses(outputs, batch, top_k=options.top_k).balance / options.layers
        (outputs.loss + options.balance * balance).backward()
        for master, parameter in zip(masters, parameters, strict=True):
            master.grad, parameter.grad = parameter.grad.float(), None
        nn.utils.clip_grad_norm_(masters, 1.0)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            for master, parameter in zip(masters, parameters, strict=True):
                parameter.copy_(master)
        losses.append(outputs.loss.detach())
        if step % max(1, options.steps // 20) == 0:
            own, other = float(torch.stack(losses[-100:]).mean()), held_out_loss(model, held_out, options)
            taken = time.perf_counter() - started
            print(f"step {step}: loss {own:.3f}, held out {other:.3f}, {taken:.0f} s", flush=True)
            if other < best:
                best, kept = other, copy.deepcopy(model.state_dict())
    model.load_state_dict(kept)
    model.eval()
    return best


def held_out_loss(model: OlmoeForCausalLM, rows: Tensor, options: argparse.Namespace) -> float:
    """The mean loss of a token of windows that are not trained on."""
    model.eval()
    with torch.no_grad():
        parts = [part.to(options.device) for part in rows.split(options.batch_size)]
        return statistics.mean(float(model(input_ids=part, labels=part).loss) for part in parts)


def unlikeness(model: OlmoeForCausalLM, rows: Tensor) -> tuple[float, float]:
    """How alike what the experts of a layer make of the same tokens is, and how busy the busiest expert."""
    cosines: list[float] = []

    def see(stack: list) -> Callable[..., None]:  # type: ignore[type-arg]
        def look(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            outputs = torch.stack([nn.functional.normalize(ffn.outputs(args[0][:512]), dim=-1) for ffn in stack])
            pairs = torch.einsum("atd,btd->abt", outputs, outputs).mean(-1)
            cosines.append(float((pairs.sum() - pairs.trace()) / (len(stack) * (len(stack) - 1))))

        return look

    hooks = [stack[0].host.register_forward_pre_hook(see(stack)) for stack in by_entry(find_ffns(model))]
    with torch.no_grad():
        model(input_ids=rows[:4].to(model.device))
    for hook in hooks:
        hook.remove()
    load = expert_load(model, [{"input_ids": part} for part in rows.split(8)])
    return statistics.mean(cosines), statistics.mean(item.imbalance for item in load.values())


def card(options: argparse.Namespace, loss: float, alike: float, busiest: float) -> str:
    """What whoever finds the folder must know."""
    return (
        "# A small mixture of experts for tests, trained from nothing\n\n"
        f"An OLMoE of {options.layers} layers with {options.experts} experts each, top {options.top_k}, hidden size "
        f"{options.hidden}, {options.width} units an expert. It was trained for up to {options.steps} steps of "
        f"{options.batch_size} x {options.length} tokens of `{Path(options.texts).name}` with a loss that balances "
        f"the routers (seed {options.seed}); its weights are those of the least held-out loss, {loss:.3f} a token of "
        f"its own byte-level BPE of {options.vocabulary:,}. What two experts of a layer make of the same token has a "
        f"cosine of {alike:.3f} on average (copies: 1), and the busiest expert of a layer gets {busiest:.2f} times "
        "the mean. It was made to compare ways to make experts smaller, knows a few megabytes of sentences, and is of "
        "no other use.\n"
    )


if __name__ == "__main__":
    main()
