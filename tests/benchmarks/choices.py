"""A multiple choice of texts' second halves, asked by lm-evaluation-harness: a second witness beside perplexity."""

import json
import random
import tempfile
from pathlib import Path

TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{start}}}}"
doc_to_choice: "{{{{ends}}}}"
doc_to_target: label
metric_list: [{{metric: {metric}}}]
"""


def write_task(folder, name, items, metric):
    """Writes a task of multiple choices for lm-evaluation-harness, and its rows, into a folder.

    Args:
        folder: The folder, which is there.
        name: The task's name.
        items: Rows with `start`, `ends` to choose from, and `label`, the number of the right one.
        metric: The harness's name of what is told.
    """
    rows = folder / f"{name}.jsonl"
    rows.write_text("\n".join(map(json.dumps, items)))
    (folder / f"{name}.yaml").write_text(TASK.format(name=name, rows=rows, metric=metric))


def halves(texts, count, choices=4):
    """Items of texts with at least twelve words: the first half, and second halves of it and of others.

    Args:
        texts: The texts.
        count: Items, at most.
        choices: Second halves of each.
    """
    drawn = random.Random(0)
    words = [text.split() for text in dict.fromkeys(texts) if len(text.split()) >= 12]
    drawn.shuffle(words)
    pairs = [(" ".join(each[: len(each) // 2]), " ".join(each[len(each) // 2 :])) for each in words[:count]]
    items = []
    for start, end in pairs:
        ends = [end, *drawn.sample([other for _, other in pairs if other != end], choices - 1)]
        drawn.shuffle(ends)
        items.append({"start": start, "ends": ends, "label": ends.index(end)})
    return items


def accuracy(model, tokenizer, texts, count):
    """The share of items whose own second half is likeliest a byte, and its standard error.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        texts: The texts.
        count: Items, at most.
    """
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_task(folder, "second_halves", halves(texts, count), "acc_norm")
        found = simple_evaluate(
            HFLM(pretrained=model, tokenizer=tokenizer, batch_size=16),
            tasks=["second_halves"],
            task_manager=TaskManager(include_path=str(folder), include_defaults=False),
            verbosity="ERROR",
        )["results"]["second_halves"]
    return found["acc_norm,none"], found["acc_norm_stderr,none"]
