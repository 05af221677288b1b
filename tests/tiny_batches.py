"""Calibration data for tiny models."""

import torch


def batches(model, count=12, rows=4, length=12):
    """Random batches with padding; labels for language models."""
    generator = torch.Generator().manual_seed(5)
    made = []
    for number in range(count):
        ids = torch.randint(2, 90, (rows, length), generator=generator)
        mask = (torch.arange(length) < length - number % 3).long().expand(rows, -1)
        batch = {"input_ids": ids, "attention_mask": mask}
        if model.config.is_encoder_decoder:
            batch |= {"decoder_input_ids": ids[:, :7], "labels": ids[:, 1:8]}
        made.append(batch)
    return made
