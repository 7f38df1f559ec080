"""A small SmolVLM for training on a CPU: the same maths as the published architecture, written for speed.

Parameters carry the published names, so `state_dict()` of `Model` is what goes into model.safetensors (the heads of
the auxiliary loss, `heads.*`, are left out). Matrix products run in bfloat16, sums in float32.
"""

import json
import math
import os

import torch
import torch.nn.functional as F
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn

import scenes

VISION = dict(hidden_size=192, intermediate_size=768, num_hidden_layers=6, num_attention_heads=4)
TEXT = dict(hidden_size=192, intermediate_size=512, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, head_dim=48)
SCALE = 2  # pixel shuffle: 256 patches become 64 image tokens
IMAGE_TOKENS = (scenes.GRID // SCALE) ** 2
THETA = 10000.0
BF = torch.bfloat16

SPECIAL = ["<|im_start|>", "<|im_end|>", "<end_of_utterance>", "<fake_token_around_image>", "<image>", "<global-img>"]
SPECIAL += [f"<row_{r}_col_{c}>" for r in range(1, 5) for c in range(1, 5)]
PREFIX = "<|im_start|>User:<fake_token_around_image><global-img>" + "<image>" * IMAGE_TOKENS + "<fake_token_around_image>"
BEFORE_ANSWER = "<end_of_utterance>\nAssistant:"


def build_tokenizer(vocab_size=640):
    """A byte-level BPE for the questions and answers. Every capital letter and digit is split off first, so that a
    character to be read is always one token, whatever stands around it."""
    import random

    rng = random.Random(1)
    lines = ["User:", "Assistant:"] * 200
    for _ in range(2000):
        scene = scenes.draw_scene(rng, scale=1)
        for kind, question, answer in scenes.questions(scene, rng):
            lines += [question, " " + answer]
    lines += [" " + w for w in (*scenes.COLORS, *scenes.GROUNDS, *scenes.SHAPES) for _ in range(200)]
    lines += [" " + w + "s" for w in scenes.SHAPES for _ in range(200)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex("[A-Z0-9]"), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(lines, trainer)
    return tokenizer


def linear(x, layer):
    """`layer` applied to bfloat16 `x`, result bfloat16."""
    return F.linear(x, layer.weight.to(BF), None if layer.bias is None else layer.bias.to(BF))


class VisionLayer(nn.Module):
    """One pre-LN block of the SigLIP tower."""

    def __init__(self):
        super().__init__()
        d, m = VISION["hidden_size"], VISION["intermediate_size"]
        self.self_attn = nn.ModuleDict({n: nn.Linear(d, d) for n in ("q_proj", "k_proj", "v_proj", "out_proj")})
        self.layer_norm1, self.layer_norm2 = nn.LayerNorm(d, eps=1e-6), nn.LayerNorm(d, eps=1e-6)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(d, m), "fc2": nn.Linear(m, d)})

    def forward(self, x):
        b, t, d = x.shape
        heads = VISION["num_attention_heads"]
        y = self.layer_norm1(x).to(BF)
        q, k, v = (linear(y, self.self_attn[n]).view(b, t, heads, -1).transpose(1, 2) for n in ("q_proj", "k_proj", "v_proj"))
        p = (q @ k.transpose(-1, -2)).float().mul((d // heads) ** -0.5).softmax(-1).to(BF)
        y = (p @ v).transpose(1, 2).reshape(b, t, d)
        x = x + linear(y, self.self_attn["out_proj"])
        y = F.gelu(linear(self.layer_norm2(x).to(BF), self.mlp["fc1"]), approximate="tanh")
        return x + linear(y, self.mlp["fc2"])


class Norm(nn.Module):
    """RMSNorm."""

    def __init__(self, d):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(d))

    def forward(self, x):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * self.weight


def rotate(x, cos, sin):
    """Rotary position embedding, halves form."""
    a, b = x.chunk(2, -1)
    return (x * cos + torch.cat((-b, a), -1) * sin).to(BF)


class TextLayer(nn.Module):
    """One Llama block."""

    def __init__(self):
        super().__init__()
        d, m, hd = TEXT["hidden_size"], TEXT["intermediate_size"], TEXT["head_dim"]
        h, kv = TEXT["num_attention_heads"], TEXT["num_key_value_heads"]
        sizes = {"q_proj": (d, h * hd), "k_proj": (d, kv * hd), "v_proj": (d, kv * hd), "o_proj": (h * hd, d)}
        self.self_attn = nn.ModuleDict({n: nn.Linear(i, o, bias=False) for n, (i, o) in sizes.items()})
        self.mlp = nn.ModuleDict({n: nn.Linear(i, o, bias=False) for n, (i, o) in dict(gate_proj=(d, m), up_proj=(d, m), down_proj=(m, d)).items()})
        self.input_layernorm, self.post_attention_layernorm = Norm(d), Norm(d)

    def forward(self, x, cos, sin, mask):
        b, t, _ = x.shape
        hd, groups = TEXT["head_dim"], TEXT["num_attention_heads"] // TEXT["num_key_value_heads"]
        y = self.input_layernorm(x).to(BF)
        q, k, v = (linear(y, self.self_attn[n]).view(b, t, -1, hd).transpose(1, 2) for n in ("q_proj", "k_proj", "v_proj"))
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        p = ((q @ k.transpose(-1, -2)).float() * hd**-0.5 + mask).softmax(-1).to(BF)
        y = (p @ v).transpose(1, 2).reshape(b, t, -1)
        x = x + linear(y, self.self_attn["o_proj"])
        y = self.post_attention_layernorm(x).to(BF)
        y = F.silu(linear(y, self.mlp["gate_proj"])) * linear(y, self.mlp["up_proj"])
        return x + linear(y, self.mlp["down_proj"])


class Vision(nn.Module):
    """The tower: patches, learned positions, blocks, final norm."""

    def __init__(self):
        super().__init__()
        d = VISION["hidden_size"]
        self.embeddings = nn.ModuleDict(
            {"patch_embedding": nn.Conv2d(3, d, scenes.PATCH, scenes.PATCH), "position_embedding": nn.Embedding(scenes.GRID**2, d)}
        )
        self.encoder = nn.ModuleDict({"layers": nn.ModuleList(VisionLayer() for _ in range(VISION["num_hidden_layers"]))})
        self.post_layernorm = nn.LayerNorm(d, eps=1e-6)

    def forward(self, pixels):
        """pixels: float [B, 3, SIDE, SIDE] in [-1, 1]"""
        b, g, p = pixels.shape[0], scenes.GRID, scenes.PATCH
        patch = self.embeddings["patch_embedding"]
        x = pixels.view(b, 3, g, p, g, p).permute(0, 2, 4, 1, 3, 5).reshape(b, g * g, 3 * p * p)
        x = F.linear(x.to(BF), patch.weight.flatten(1).to(BF)) + patch.bias + self.embeddings["position_embedding"].weight
        for layer in self.encoder["layers"]:
            x = layer(x)
        return self.post_layernorm(x)


class Text(nn.Module):
    """The language model without its head."""

    def __init__(self, vocab):
        super().__init__()
        d = TEXT["hidden_size"]
        self.embed_tokens = nn.Embedding(vocab, d)
        self.layers = nn.ModuleList(TextLayer() for _ in range(TEXT["num_hidden_layers"]))
        self.norm = Norm(d)

    def forward(self, x, positions, mask):
        hd = TEXT["head_dim"]
        freq = THETA ** (-torch.arange(0, hd, 2).float() / hd)
        angle = (positions[..., None].float() * freq).repeat(1, 1, 2)[:, None]
        cos, sin = angle.cos(), angle.sin()
        for layer in self.layers:
            x = layer(x, cos, sin, mask)
        return self.norm(x)


class Model(nn.Module):
    """The whole model, with the heads of the auxiliary loss."""

    def __init__(self, vocab):
        super().__init__()
        d = VISION["hidden_size"]
        self.model = nn.ModuleDict(
            {
                "vision_model": Vision(),
                "connector": nn.ModuleDict({"modality_projection": nn.ModuleDict({"proj": nn.Linear(d * SCALE**2, TEXT["hidden_size"], bias=False)})}),
                "text_model": Text(vocab),
            }
        )
        self.lm_head = nn.Linear(TEXT["hidden_size"], vocab, bias=False)
        self.heads = nn.Linear(d, sum(scenes.HEADS))
        self.initialise()

    def see(self, pixels):
        """Patch features, float [B, patches, d]."""
        return self.model["vision_model"](pixels)

    def label_logits(self, features):
        """Logits of the auxiliary heads."""
        return linear(features.to(BF), self.heads).float()

    def text(self, features, ids, positions, mask, image_at):
        """Hidden states of a sequence whose image tokens start at index `image_at` (the same in every row)."""
        b, t, d = features.shape
        g = scenes.GRID // SCALE
        x = features.view(b, g, SCALE, g, SCALE, d).permute(0, 1, 3, 2, 4, 5).reshape(b, g * g, d * SCALE**2)
        x = linear(x.to(BF), self.model["connector"]["modality_projection"]["proj"]).float()
        e = self.model["text_model"].embed_tokens(ids)
        e = torch.cat((e[:, :image_at], x, e[:, image_at + g * g :]), 1)
        return self.model["text_model"](e, positions, mask)

    def logits(self, hidden):
        """Logits over the vocabulary."""
        return linear(hidden.to(BF), self.lm_head).float()

    @torch.no_grad()
    def initialise(self):
        """Weights to start from. The tower starts as something like a small convolutional network: positions are
        sines and cosines, and in the first four layers each head looks at one neighbour (the query of a head is the
        position turned by the offset of the neighbour). Patches start as their lowest DCT coefficients."""
        for name, p in self.named_parameters():
            if p.ndim == 2 and "embed" not in name:
                out = any(s in name for s in ("out_proj", "fc2", "o_proj", "down_proj"))
                p.normal_(0, p.shape[1] ** -0.5 * (0.4 if out else 1.0))
            elif name.endswith("bias"):
                p.zero_()
        self.model["text_model"].embed_tokens.weight.normal_(0, 0.5)
        self.lm_head.weight.mul_(0.3)
        self.heads.weight.mul_(0.3)
        d, g, p = VISION["hidden_size"], scenes.GRID, scenes.PATCH
        vision = self.model["vision_model"]
        hd = d // VISION["num_attention_heads"]
        n = hd // 4  # frequencies per axis
        w = math.pi / g * torch.arange(1, n + 1)
        where = torch.arange(g).float()[:, None] * w
        pos = vision.embeddings["position_embedding"].weight
        pos.normal_(0, 0.02)
        pos.view(g, g, d)[..., 0 * n : 1 * n] = where.cos()[None]  # column
        pos.view(g, g, d)[..., 1 * n : 2 * n] = where.sin()[None]
        pos.view(g, g, d)[..., 2 * n : 3 * n] = where.cos()[:, None]  # row
        pos.view(g, g, d)[..., 3 * n : 4 * n] = where.sin()[:, None]
        k = torch.arange(p).float()
        dct = torch.cos(math.pi / p * (k[None] + 0.5) * k[:, None])
        dct = dct / dct.norm(dim=1, keepdim=True)
        basis = torch.einsum("ux,vy->uvxy", dct, dct).reshape(p * p, p, p)
        order = sorted(range(p * p), key=lambda i: ((i // p) + (i % p), i))
        mix = torch.tensor([[1.0, 1, 1], [1, 0, -1], [-0.5, 1, -0.5]])
        mix = mix / mix.norm(dim=1, keepdim=True)
        weight = vision.embeddings["patch_embedding"].weight
        weight.normal_(0, 0.01)
        for j in range(d - hd):
            i, c = order[j // 3], j % 3
            gain = 0.3 if i == 0 else 1.0
            weight[hd + j] = gain * mix[c][:, None, None] * basis[i]
        offsets = [[(-1, 0), (1, 0), (0, -1), (0, 1)], [(-1, -1), (1, -1), (-1, 1), (1, 1)], [(-1, 0), (1, 0), (0, -1), (0, 1)], [(-2, 0), (2, 0), (0, -2), (0, 2)]]
        eye = torch.eye(hd, d)
        for layer, places in zip(vision.encoder["layers"], offsets):
            q, key = layer.self_attn["q_proj"].weight, layer.self_attn["k_proj"].weight
            q.mul_(0.3), key.mul_(0.3)
            for h, (dx, dy) in enumerate(places):
                turn = torch.zeros(hd, d)
                for axis, delta in ((0, dx), (2 * n, dy)):
                    c, s = torch.diag((w * delta).cos()), torch.diag((w * delta).sin())
                    turn[axis : axis + n, axis : axis + n] = c
                    turn[axis : axis + n, axis + n : axis + 2 * n] = -s
                    turn[axis + n : axis + 2 * n, axis : axis + n] = s
                    turn[axis + n : axis + 2 * n, axis + n : axis + 2 * n] = c
                q[h * hd : (h + 1) * hd] += 1.5 * turn
                key[h * hd : (h + 1) * hd] += 1.5 * eye


# ---------------------------------------------------------------------------------------------------------------
# Files

CHAT_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{message['role'] | capitalize}}"
    "{% if message['content'][0]['type'] == 'image' %}{{':'}}{% else %}{{': '}}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{line['text']}}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


def configs(tokenizer):
    """The JSON files of a checkpoint, by name."""
    ident = tokenizer.token_to_id
    bos, eos, pad = ident("<|im_start|>"), ident("<end_of_utterance>"), ident("<|im_end|>")
    text = dict(
        TEXT, model_type="llama", architectures=["LlamaForCausalLM"], vocab_size=tokenizer.get_vocab_size(), hidden_act="silu", rms_norm_eps=1e-5,
        rope_theta=THETA, rope_scaling=None, max_position_embeddings=2048, attention_bias=False, mlp_bias=False, attention_dropout=0.0,
        initializer_range=0.02, tie_word_embeddings=False, use_cache=True, bos_token_id=bos, eos_token_id=eos, pad_token_id=pad, torch_dtype="bfloat16",
    )  # fmt: skip
    vision = dict(
        VISION, model_type="idefics3_vision", image_size=scenes.SIDE, patch_size=scenes.PATCH, num_channels=3, hidden_act="gelu_pytorch_tanh",
        layer_norm_eps=1e-6, attention_dropout=0.0, initializer_range=0.02, torch_dtype="bfloat16",
    )  # fmt: skip
    config = dict(
        architectures=["Idefics3ForConditionalGeneration"], model_type="idefics3", image_token_id=ident("<image>"), scale_factor=SCALE,
        tie_word_embeddings=False, use_cache=True, bos_token_id=bos, eos_token_id=eos, pad_token_id=pad, vocab_size=tokenizer.get_vocab_size(),
        torch_dtype="bfloat16", text_config=text, vision_config=vision,
    )  # fmt: skip
    preprocessor = dict(
        image_processor_type="Idefics3ImageProcessor", processor_class="Idefics3Processor", do_convert_rgb=True, do_resize=True, do_rescale=True,
        do_normalize=True, do_pad=True, do_image_splitting=False, image_mean=[0.5] * 3, image_std=[0.5] * 3, resample=1, rescale_factor=1 / 255,
        size={"longest_edge": scenes.SIDE}, max_image_size={"longest_edge": scenes.SIDE},
    )  # fmt: skip
    special = {
        str(ident(t)): dict(content=t, lstrip=False, rstrip=False, normalized=False, single_word=False, special=True) for t in SPECIAL
    }
    tok = dict(
        tokenizer_class="PreTrainedTokenizerFast", processor_class="Idefics3Processor", added_tokens_decoder=special, bos_token="<|im_start|>",
        eos_token="<end_of_utterance>", pad_token="<|im_end|>", additional_special_tokens=SPECIAL[3:], clean_up_tokenization_spaces=False,
        model_max_length=2048, fake_image_token="<fake_token_around_image>", image_token="<image>", global_image_token="<global-img>",
        end_of_utterance_token="<end_of_utterance>",
    )  # fmt: skip
    return {
        "config.json": config,
        "preprocessor_config.json": preprocessor,
        "processor_config.json": dict(image_seq_len=IMAGE_TOKENS, processor_class="Idefics3Processor"),
        "tokenizer_config.json": tok,
        "generation_config.json": dict(bos_token_id=bos, eos_token_id=eos, pad_token_id=pad, do_sample=False, max_new_tokens=96),
    }


def export(state, tokenizer, folder):
    """Write a checkpoint; every file is replaced in one step."""
    from safetensors.torch import save

    os.makedirs(folder, exist_ok=True)
    tensors = {k: v.detach().to(BF).contiguous() for k, v in state.items() if not k.startswith("heads.")}
    files = {k: (json.dumps(v, indent=2) + "\n").encode() for k, v in configs(tokenizer).items()}
    files["chat_template.jinja"] = CHAT_TEMPLATE.encode()
    files["tokenizer.json"] = tokenizer.to_str(pretty=True).encode()
    files["model.safetensors"] = save(tensors, metadata={"format": "pt"})
    for name, data in files.items():
        path = os.path.join(folder, name)
        with open(path + ".part", "wb") as f:
            f.write(data)
        os.replace(path + ".part", path)
