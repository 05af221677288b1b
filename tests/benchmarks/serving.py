"""Whether an engine writes what transformers writes: greedy tokens and their log-probabilities, for three prompts.

    python tests/benchmarks/serving.py transformers PLAIN reference.json
    python tests/benchmarks/serving.py vllm PLAIN reference.json
    python tests/benchmarks/serving.py llama_cpp MODEL.gguf reference.json [--float16-cache]

The first writes the reference, the others compare with it; each runs where its engine is installed, and needs nothing
else of this project (`docs/serving.md` says what was). PLAIN is an exported causal language model.
"""

import argparse
import json
from pathlib import Path

TEXTS = ("The capital of France is", "Water boils at a temperature of", "Once upon a time, there was a little")
TOKENS = 24


def run_transformers(folder, _, __):
    """What the model writes, with the tokens of the prompts."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    for text in TEXTS:
        prompt = tokenizer(text, return_tensors="pt")
        with torch.no_grad():
            made = model.generate(**prompt, max_new_tokens=TOKENS, min_new_tokens=TOKENS, do_sample=False)
            scores = model(made).logits.log_softmax(-1)[0]
        start = prompt["input_ids"].shape[1]
        new = made[0, start:]
        logprobs = scores[start - 1 : -1].gather(1, new[:, None])[:, 0]
        yield {"prompt": made[0, :start].tolist(), "tokens": new.tolist(), "logprobs": logprobs.tolist()}


def run_vllm(folder, reference, _):
    """The same from vLLM, in float32."""
    from vllm import LLM, SamplingParams

    engine = LLM(folder, dtype="float32", enforce_eager=True, max_model_len=256, max_num_seqs=4)
    greedy = SamplingParams(temperature=0, max_tokens=TOKENS, ignore_eos=True, logprobs=1)
    for request in engine.generate([{"prompt_token_ids": row["prompt"]} for row in reference], greedy):
        output = request.outputs[0]
        steps = zip(output.logprobs, output.token_ids, strict=True)
        yield {"tokens": list(output.token_ids), "logprobs": [step[token].logprob for step, token in steps]}


def run_llama_cpp(file, reference, float16_cache):
    """The same from llama.cpp."""
    import numpy
    from llama_cpp import Llama

    kind = 1 if float16_cache else 0  # GGML_TYPE_F16, GGML_TYPE_F32
    model = Llama(file, n_ctx=256, logits_all=True, verbose=False, type_k=kind, type_v=kind)
    for row in reference:
        model.reset()
        model.eval(row["prompt"])
        tokens, logprobs = [], []
        for _ in range(TOKENS):
            scores = model.scores[model.n_tokens - 1].astype(numpy.float64)
            tokens.append(int(scores.argmax()))
            logprobs.append(float(-numpy.log(numpy.exp(scores - scores.max()).sum())))
            model.eval(tokens[-1:])
        yield {"tokens": tokens, "logprobs": logprobs}


def main():
    """Writes the reference, or prints how far an engine is from it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    engines = {"transformers": run_transformers, "vllm": run_vllm, "llama_cpp": run_llama_cpp}
    parser.add_argument("engine", choices=engines)
    parser.add_argument("model")
    parser.add_argument("reference", type=Path)
    parser.add_argument("--float16-cache", action="store_true", help="llama.cpp's own default")
    options = parser.parse_args()
    reference = None if options.engine == "transformers" else json.loads(options.reference.read_text())
    found = list(engines[options.engine](options.model, reference, options.float16_cache))
    if reference is None:
        options.reference.write_text(json.dumps(found))
        return
    for row, expected in zip(found, reference, strict=True):
        pairs = enumerate(zip(row["tokens"], expected["tokens"], strict=True))
        equal = next((number for number, (one, other) in pairs if one != other), TOKENS)
        logprobs = zip(row["logprobs"][:equal], expected["logprobs"], strict=False)
        worst = max((abs(one - other) for one, other in logprobs), default=float("nan"))
        print(f"{equal} of {TOKENS} tokens equal, log-probabilities off by at most {worst:.1e}")


if __name__ == "__main__":
    main()
