"""What upstream's fixture of Moondream2 leaves out: logits of the prompt, beams, boxes and points.

The text half is run as transformers' Phi, which it is but for the names and the first 730 tokens seeing each other; the
region head is upstream's `region.py` and `moondream.py` written down again. What upstream did save (features, greedy ids,
logits of the first step) is compared first.
"""
import json, math, sys
from pathlib import Path
import torch, torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import PhiConfig, PhiForCausalLM
from transformers.models.phi import modeling_phi
from tokenizers import Tokenizer

source, target = Path(sys.argv[1]), Path(sys.argv[2])
torch.manual_seed(0)
w = load_file(source / "model.safetensors")
ref = load_file(source / "reference.safetensors")
cfg = json.loads((source / "config.json").read_text())["config"]
text, tok = cfg["text"], cfg["tokenizer"]
tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
PREFIX = text["prefix_attn"]

phi = PhiForCausalLM(PhiConfig(vocab_size=text["vocab_size"], hidden_size=text["dim"], intermediate_size=text["ff_dim"],
    num_hidden_layers=text["n_layers"], num_attention_heads=text["n_heads"], hidden_act="gelu_new", layer_norm_eps=1e-5,
    max_position_embeddings=text["max_context"], bos_token_id=tok["bos_id"], eos_token_id=tok["eos_id"], pad_token_id=tok["eos_id"],
    rope_parameters=dict(rope_type="default", rope_theta=10000.0, partial_rotary_factor=0.5))).eval()
state = {"model.embed_tokens.weight": w["model.text.wte"], "lm_head.weight": w["model.text.lm_head.weight"], "lm_head.bias": w["model.text.lm_head.bias"]}
for part in ("weight", "bias"):
    state[f"model.final_layernorm.{part}"] = w[f"model.text.post_ln.{part}"]
    for n in range(text["n_layers"]):
        old, new = f"model.text.blocks.{n}", f"model.layers.{n}"
        state[f"{new}.input_layernorm.{part}"] = w[f"{old}.ln.{part}"]
        for name, chunk in zip(("q_proj", "k_proj", "v_proj"), w[f"{old}.attn.qkv.{part}"].chunk(3)):
            state[f"{new}.self_attn.{name}.{part}"] = chunk.contiguous()
        state[f"{new}.self_attn.dense.{part}"] = w[f"{old}.attn.proj.{part}"]
        for fc in ("fc1", "fc2"):
            state[f"{new}.mlp.{fc}.{part}"] = w[f"{old}.mlp.{fc}.{part}"]
print(phi.load_state_dict(state, strict=False))

def mask(config=None, inputs_embeds=None, past_key_values=None, **_):
    rows = inputs_embeds.shape[1]
    past = past_key_values.get_seq_length() if past_key_values is not None else 0
    seen = torch.ones(rows, past + rows, dtype=torch.bool).tril(past)
    seen[: max(0, PREFIX - past), :PREFIX] = True
    return seen[None, None].expand(inputs_embeds.shape[0], 1, -1, -1)
modeling_phi.create_causal_mask = mask

features = ref["out.image_features"]
def prompt(ids):
    return torch.cat([w["model.text.wte"][[tok["bos_id"]]], features, w["model.text.wte"][ids]])[None]

def linear(x, name): return F.linear(x, w[f"model.region.{name}.weight"], w[f"model.region.{name}.bias"])
def mlp(x, name): return linear(F.gelu(linear(x, f"{name}.fc1"), approximate="tanh"), f"{name}.fc2")
def fourier(x, name):
    f = 2 * math.pi * x @ w[f"model.region.{name}"]
    return torch.cat([f.cos(), f.sin()], -1)

@torch.no_grad()
def locate(ids, with_size, most):
    """Rows of x, y and, for boxes, width and height."""
    out = phi.model(inputs_embeds=prompt(ids), use_cache=True)
    # Upstream reads numbers off the hidden states before the last norm.
    raw = lambda o: o
    objects, cache = [], out.past_key_values
    hooks = []
    last = {}
    phi.model.final_layernorm.register_forward_pre_hook(lambda m, a: last.update(h=a[0]))
    out = phi(inputs_embeds=prompt(ids), use_cache=True); cache = out.past_key_values
    def step(emb):
        nonlocal cache
        out = phi(inputs_embeds=emb.reshape(1, 1, -1), past_key_values=cache, use_cache=True); cache = out.past_key_values
        return out.logits[0, -1], last["h"][0, -1]
    logits, hidden = out.logits[0, -1], last["h"][0, -1]
    margins = []
    def pick(l):
        top = l.topk(2).values; margins.append((top[0] - top[1]).item()); return l.argmax()
    while pick(logits) != tok["eos_id"] and len(objects) < most:
        l = mlp(hidden, "coord_decoder"); x = pick(l) / l.numel()
        logits, hidden = step(linear(fourier(x[None], "coord_features"), "coord_encoder"))
        l = mlp(hidden, "coord_decoder"); y = pick(l) / l.numel()
        emb = linear(fourier(y[None], "coord_features"), "coord_encoder")
        row = [x.item(), y.item()]
        if with_size:
            logits, hidden = step(emb)
            ws, hs = mlp(hidden, "size_decoder").view(2, -1)
            size = torch.stack([torch.pow(torch.tensor(2.0), pick(l).float() / 1023.0 * 10.0 - 10.0) for l in (ws, hs)])
            emb = linear(fourier(size, "size_features"), "size_encoder")
            row += size.tolist()
        objects.append(row)
        logits, hidden = step(emb)
    print(len(objects), "objects, smallest margin", min(margins), objects[:3])
    return torch.tensor(objects)

ids = ref["in.prompt_ids"][0]
with torch.no_grad():
    logits = phi(inputs_embeds=prompt(ids)).logits[0]
    print("first step", (logits[-1] - ref["out.logits"][0, 0]).abs().max().item())
    greedy = phi.generate(inputs_embeds=prompt(ids), max_new_tokens=12, do_sample=False)
    print(greedy, ref["out.greedy_ids"])
    assert torch.equal(greedy[0], ref["out.greedy_ids"][0])
    beams = phi.generate(inputs_embeds=prompt(ids), max_new_tokens=12, do_sample=False, num_beams=3, length_penalty=1.0, early_stopping=False, return_dict_in_generate=True, output_scores=True)
    print(beams.sequences, beams.sequences_scores)
image_id = text["vocab_size"]
tensors = {
    "in.input_ids": torch.cat([torch.tensor([tok["bos_id"]]), torch.full((features.shape[0],), image_id), ids])[None],
    # The global crop and the first local one; features are those of all.
    "in.pixel_values": ref["in.pixel_values"][:2].contiguous(),
    "in.tiling": ref["in.tiling"],
    "out.image_features": features,
    "out.logits": logits[-len(ids):][None].contiguous(),
    "out.greedy_ids": ref["out.greedy_ids"],
    "out.beam3_ids": beams.sequences.contiguous(),
    "out.beam3_scores": beams.sequences_scores.contiguous(),
}
obj = tokenizer.encode(" red circle").ids
detect = tok["templates"]["detect"] or dict(prefix=[421, 41, 422], suffix=[423])
point = tok["templates"]["point"] or dict(prefix=[421, 42, 422], suffix=[423])
cfg["tokenizer"]["templates"].update(detect=detect, point=point)
tensors["out.boxes"] = locate(torch.tensor(detect["prefix"] + obj + detect["suffix"]), True, 5)
tensors["out.points"] = locate(torch.tensor(point["prefix"] + obj + point["suffix"]), False, 5)
save_file(tensors, target / "reference.safetensors")
