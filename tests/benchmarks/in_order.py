"""Are FFNs better fused one after another, each on what those before it have become?

    python tests/benchmarks/in_order.py MODEL TRAIN EVAL [--width 0.5] [--layers last:8] [--post-norm] [--device cuda]

Ways to take the moments that units are chosen and refitted by. "at once": of the unfused model. "in order": with all
FFNs before it fused. "own": so, but the output wanted is what the FFN gave in the unfused model. "layer": the output
wanted is the one that makes the layer return what it returned in the unfused model. A share behind a colon
("layer:0.5") goes a part of the way from "in order" only. An FFN's output is added to what the layer has so far: with
`--post-norm` (BERT, MPNet) that is the FFN's input, otherwise (GPT-2, Llama) what the layer returns less that output.
Language models are fused in the unfused model's metric of the loss, and the perplexity of EVAL is printed as a
multiple; of others the relative error of the last hidden state. FFNs keep their width here, and the units that are
dropped give nothing.
"""

import copy

import torch
from healing import inputs_parser, opened

from hf_mlp_fusion import FusionConfig
from hf_mlp_fusion.data import LANGUAGE_OBJECTIVES, objective_of
from hf_mlp_fusion.fusion import plan_fusion
from hf_mlp_fusion.fusion.loss_metric import loss_metrics
from hf_mlp_fusion.measure import language_loss
from hf_mlp_fusion.modeling.find import find_ffns
from hf_mlp_fusion.tensors import RIDGE, MomentSums, eliminate, ridge_refit


def returned(model, ffn, batch, post_norm):
    """What an FFN's down projection sees and gives, and that with what it is added to, of the tokens that count."""
    seen = {}
    layer = model.get_submodule(ffn.full_name.rpartition(".")[0])
    hooks = [
        *ffn.watch(
            inputs=lambda inputs: seen.update(inputs=inputs),
            outputs=lambda hidden, output: seen.update(hidden=hidden, output=output),
        ),
        layer.register_forward_hook(lambda _, inputs, out: seen.update(layer=out if torch.is_tensor(out) else out[0])),
    ]
    with torch.no_grad():
        model(**inputs_of(batch, model))
    for hook in hooks:
        hook.remove()
    real = batch["attention_mask"].bool()
    hidden, output = seen["hidden"][real], seen["output"][real]
    return hidden, output, (seen["inputs"][real] + output if post_norm else seen["layer"][real])


def inputs_of(batch, model):
    """What of a batch a model takes besides labels."""
    return {name: batch[name].to(model.device) for name in ("input_ids", "attention_mask")}


@torch.no_grad()
def cost(small, model, rows):
    """The perplexity as a multiple of the unfused model's, or the error of the last hidden state."""
    if objective_of(model) in LANGUAGE_OBJECTIVES:
        return language_loss(small, rows).perplexity / language_loss(model, rows).perplexity
    states = [[], []]
    for batch in rows:
        for found, one in zip(states, (small, model), strict=True):
            found.append(one.base_model(**inputs_of(batch, one)).last_hidden_state[batch["attention_mask"].bool()])
    fused, wanted = map(torch.cat, states)
    return float((fused - wanted).square().sum() / (wanted - wanted.mean(0)).square().sum())


def reduce_one(model, ffn, original, own, batches, width, factor, way, post_norm):
    """Drops the units of one FFN of `model`, and refits the others."""
    weights = ffn.read()
    sums = MomentSums(centred=weights.down_bias is not None)
    kind, _, share = way.partition(":")
    for batch in batches:
        hidden, output, layer = returned(model, ffn, batch, post_norm)
        if kind in ("own", "layer"):
            _, own_output, own_layer = returned(original, own, batch, post_norm)
            output = output + float(share or 1) * (own_output - output if kind == "own" else own_layer - layer)
        sums.add(hidden, output)
    moments = sums.moments()
    kept = eliminate([moments], width, metrics=[factor])[0].kept(width)
    down, bias = ridge_refit(
        moments.of_units(kept), weights.down[:, kept].double(), ridge=max(RIDGE, 0.1 * width / moments.count)
    )
    padded = torch.zeros_like(weights.down)
    padded[:, kept] = down.to(padded)
    refitted = weights.with_down(padded, None if weights.down_bias is None else bias.to(padded))
    with torch.no_grad():
        ffn.write(ffn.tensors(refitted))


def main() -> None:
    """Prints a line a way."""
    parser = inputs_parser(__doc__)
    parser.add_argument("--width", type=float, default=0.5)
    parser.add_argument("--layers", default="all")
    parser.add_argument("--ways", nargs="+", default=["at once", "in order", "own", "layer:0.5", "layer"])
    parser.add_argument("--post-norm", action="store_true")
    options = parser.parse_args()
    _, _, model, batches, held_out = opened(options)
    todo = plan_fusion(model, FusionConfig(width=options.width, layers=options.layers)).widths
    factors = {}
    if objective_of(model) in LANGUAGE_OBJECTIVES:
        factors = loss_metrics(model, [ffn for ffn, _ in todo], batches, 0)
    tokens = sum(int(batch["attention_mask"].sum()) for batch in batches)
    print(f"{len(todo)} FFNs to {options.width} on {tokens:,} tokens", flush=True)
    for way in options.ways:
        small = copy.deepcopy(model)
        own = {ffn.name: ffn for ffn in find_ffns(small)}
        read = copy.deepcopy(model) if way == "at once" else small
        for ffn, width in todo:
            watched = next(item for item in find_ffns(read) if item.name == ffn.name)
            reduce_one(read, watched, model, ffn, batches, width, factors.get(ffn.name), way, options.post_norm)
            if way == "at once":  # the one that is read stays as it was
                own[ffn.name].write({name: tensor.clone() for name, tensor in watched.tensors(watched.read()).items()})
                watched.write({name: tensor.clone() for name, tensor in ffn.tensors(ffn.read()).items()})
        print(f"{way}: {cost(small, model, held_out):.4f}", flush=True)


if __name__ == "__main__":
    main()
