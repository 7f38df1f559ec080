"""Loads argv[1] with mlx-lm or mlx-vlm and compares its logits for the prompt of the fixture argv[2] with the file
logits.f32 in argv[1]."""

import json
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np

folder, fixture = Path(sys.argv[1]), Path(sys.argv[2])
config = json.loads((folder / "config.json").read_text())
reference = mx.load(str(fixture / "reference.safetensors"))
if "vision_config" in config:
    sys.path.insert(0, str(Path(__file__).resolve().parents[4] / "tools" / "fixtures"))
    from mlx_variants import as_published, logits
    from mlx_vlm.utils import load_model

    model = load_model(folder)
    as_published(model)
    found = logits(model, reference)
else:
    from mlx_lm.utils import load_model

    model, _ = load_model(folder)
    found = model(reference["in.input_ids"])
found = np.array(found.astype(mx.float32)).reshape(-1)
expected = np.fromfile(folder / "logits.f32", dtype=np.float32)
worst = np.abs(found - expected).max() / np.abs(expected).max()
print(f"{folder.name}: {worst:.2e}")
# Ours rounds activations to 8 bits where that is fast.
assert found.shape == expected.shape and worst < 5e-2, worst
