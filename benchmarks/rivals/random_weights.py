"""Models of published shapes with random weights, made in memory: one copy, in the precision they run in, no download."""
import json
import os

import torch

PUBLISHED = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../crates/engine/src/bench/published")
# Numbers that all weights are cut from: far more than caches hold, quick to make.
POOL = 1 << 24


def published(name, file="config.json"):
    """What `ocelli bench --random-weights NAME` builds: a file of the published model."""
    with open(os.path.join(PUBLISHED, name + ".json")) as content:
        return json.load(content)[file]


def fill(model):
    """Matrices that keep the scale of what they multiply, norms of one, small biases: nothing overflows or fades to
    denormal numbers, which some processors are slow with."""
    pool = torch.randn(POOL, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.numel() == weight.shape[0]:
                weight.copy_(0.01 * pool[:weight.numel()].view_as(weight) if name.endswith("bias") else torch.ones_like(weight))
                continue
            scale = (weight.numel() / weight.shape[0]) ** -0.5
            scaled = (pool * scale).to(weight.dtype)
            for part in weight.view(-1).split(POOL):
                part.copy_(scaled[:part.numel()])
    return model.eval()


def build(make, dtype):
    """What `make` makes, with weights of `dtype`, without the minutes that initialising them takes."""
    from transformers.initialization import no_init_weights
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    with no_init_weights():
        model = make()
    torch.set_default_dtype(before)
    if hasattr(model, "tie_weights"):
        model.tie_weights()
    return fill(model)
