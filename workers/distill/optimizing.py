"""What moves in a training, how fast, and in which precision."""

import math
from typing import Any

import torch

from app.specs.training import Schedule, Trainable, TrainingSpec


def learning_rate(schedule: Schedule, step: int) -> float:
    """Return the rate of step `step` (from 0): linear warm-up, then a cosine to min_lr_ratio."""
    if step < schedule.warmup_steps:
        return schedule.learning_rate * (step + 1) / schedule.warmup_steps
    rest = max(schedule.steps - schedule.warmup_steps, 1)
    cosine = 0.5 * (1 + math.cos(math.pi * min((step - schedule.warmup_steps) / rest, 1.0)))
    floor = schedule.min_lr_ratio
    return schedule.learning_rate * (floor + (1 - floor) * cosine)


def select_trainable(model: Any, trainable: Trainable) -> list[torch.nn.Parameter]:
    """Mark which weights move and return them.

    `top_layers` n: the last n decoder layers, the final norm, and an untied head. A tied head is
    the embedding: it moves only where all layers do, and never under `freeze_embeddings`.
    """
    base = model.base_model
    embedding = model.get_input_embeddings().weight
    head = model.get_output_embeddings().weight
    everything = trainable.top_layers is None or trainable.top_layers >= len(base.layers)
    for parameter in model.parameters():
        parameter.requires_grad_(everything)
    if not everything:
        head.requires_grad_(head is not embedding)
        for module in (*base.layers[-(trainable.top_layers or 0) :], base.norm):
            module.requires_grad_(requires_grad=True)
    if trainable.freeze_embeddings:
        embedding.requires_grad_(requires_grad=False)
        head.requires_grad_(requires_grad=False)
    return [p for p in model.parameters() if p.requires_grad]


def adamw(parameters: list[torch.nn.Parameter], schedule: Schedule) -> torch.optim.AdamW:
    """Return the optimiser; weight decay is on matrices only."""
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": schedule.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [g for g in groups if g["params"]], lr=schedule.learning_rate, betas=schedule.betas
    )


def use_bfloat16(spec: TrainingSpec, device: torch.device) -> bool:
    """Return whether forward passes run in bf16 autocast; weights and optimiser stay fp32.

    `auto` is bf16 on CUDA only: on the CPUs measured it won 3 % of a step's time, which is not
    worth the lost bits.
    """
    if spec.precision == "auto":
        return device.type == "cuda"
    return spec.precision == "bfloat16"
