#!/usr/bin/env python3
"""Write the held-out scenes (one contact sheet and their questions), or the example pictures.

    python heldout.py sheet ASSETS        # ASSETS/heldout.png, ASSETS/heldout.jsonl
    python heldout.py examples FOLDER     # FOLDER/*.png, *.jpg, *.webp, answers.jsonl
    python heldout.py score ASSETS        # exact match on the held-out scenes, by the training code
    python heldout.py generate ASSETS [N] # the same (first N scenes), by transformers and its own processor
    python heldout.py answers ASSETS FOLDER  # exact match on the examples, by transformers

The seeds here are used by nothing else.
"""

import json
import os
import random
import sys

import numpy as np
from PIL import Image

import scenes

SHEET_SEED, EXAMPLES_SEED = 990017, 424243
COLUMNS, ROWS = 25, 20


def sheet(folder):
    """The held-out scenes: tile i of the sheet (row-major) is line i of the JSON lines."""
    rng = random.Random(SHEET_SEED)
    picture = Image.new("RGB", (COLUMNS * scenes.SIDE, ROWS * scenes.SIDE))
    with open(os.path.join(folder, "heldout.jsonl"), "w") as out:
        for i in range(COLUMNS * ROWS):
            scene = scenes.draw_scene(rng, compress=0.03)
            picture.paste(scene.image, (i % COLUMNS * scenes.SIDE, i // COLUMNS * scenes.SIDE))
            asked = [dict(kind=k, question=q, answer=a) for k, q, a in scenes.questions(scene, rng, plain_describe=True)]
            out.write(json.dumps(dict(index=i, questions=asked), ensure_ascii=False) + "\n")
    picture.save(os.path.join(folder, "heldout.png"), optimize=True)


def read_sheet(folder):
    """(pictures uint8 [N, SIDE, SIDE, 3], per picture a list of (kind, question, answer))."""
    s = scenes.SIDE
    big = np.asarray(Image.open(os.path.join(folder, "heldout.png")).convert("RGB"))
    tiles = big.reshape(ROWS, s, COLUMNS, s, 3).swapaxes(1, 2).reshape(ROWS * COLUMNS, s, s, 3)
    with open(os.path.join(folder, "heldout.jsonl")) as f:
        rows = [[(q["kind"], q["question"], q["answer"]) for q in json.loads(line)["questions"]] for line in f]
    return tiles, rows


def examples(folder):
    """A dozen pictures drawn larger than the model sees them, in several file formats, four of them not square."""
    rng = random.Random(EXAMPLES_SEED)
    os.makedirs(folder, exist_ok=True)
    kinds = ["png", "png", "jpg", "png", "webp", "png", "png", "jpg", "png", "webp", "png", "jpg"]
    aspects = {2: 4 / 3, 5: 3 / 4, 8: 3 / 2, 10: 4 / 3}
    with open(os.path.join(folder, "answers.jsonl"), "w") as out:
        for i, kind in enumerate(kinds):
            scene = scenes.draw_scene(rng, scale=rng.choice([3, 4, 5]), compress=0, keep_large=True, aspect=aspects.get(i))
            name = f"scene-{i + 1:02d}.{kind}"
            options = {"png": dict(optimize=True), "jpg": dict(quality=90), "webp": dict(quality=90)}[kind]
            scene.image.save(os.path.join(folder, name), **options)
            for _, q, a in scenes.questions(scene, rng, plain_describe=True):
                out.write(json.dumps(dict(image=name, question=q, answer=a), ensure_ascii=False) + "\n")


def score(folder):
    """Print the exact match on the held-out scenes, computed by the training code (greedy answers)."""
    import torch
    from safetensors.torch import load_file
    from tokenizers import Tokenizer

    import model as net
    import train

    torch.set_num_threads(1)
    tokenizer = Tokenizer.from_file(os.path.join(folder, "tokenizer.json"))
    m = net.Model(tokenizer.get_vocab_size())
    m.load_state_dict({k: v.float() for k, v in load_file(os.path.join(folder, "model.safetensors")).items()}, strict=False)
    tiles, rows = read_sheet(folder)
    for kind, (share, n) in train.evaluate(m, train.Encoder(tokenizer), rows, tiles).items():
        print(f"{kind:12} {100 * share:5.1f} %  of {n}")


def answerer(folder):
    """A function (picture, questions) -> greedy answers, by transformers."""
    import torch
    from transformers import AutoProcessor, Idefics3ForConditionalGeneration

    torch.set_num_threads(1)
    model = Idefics3ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(folder)

    def answer(picture, questions):
        out = []
        for question in questions:
            content = [{"type": "image"}, {"type": "text", "text": question}]
            text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
            inputs = processor(text=text, images=[picture], return_tensors="pt")
            with torch.no_grad():
                ids = model.generate(**inputs, do_sample=False, max_new_tokens=96)[0, inputs["input_ids"].shape[1] :]
            out.append(processor.tokenizer.decode(ids, skip_special_tokens=True).strip())
        return out

    return answer


def generate(folder, count=COLUMNS * ROWS):
    """Print the exact match on the first `count` held-out scenes, answered by transformers."""
    answer = answerer(folder)
    tiles, rows = read_sheet(folder)
    good, seen = {}, {}
    for tile, questions in list(zip(tiles, rows))[: int(count)]:
        for (kind, _, want), got in zip(questions, answer(Image.fromarray(tile), [q[1] for q in questions])):
            seen[kind] = seen.get(kind, 0) + 1
            good[kind] = good.get(kind, 0) + (got == want)
    for kind in sorted(seen):
        print(f"{kind:12} {100 * good[kind] / seen[kind]:5.1f} %  of {seen[kind]}")


def answers(assets, folder):
    """Print which of the listed answers of the example pictures the model gives, by transformers."""
    answer = answerer(assets)
    with open(os.path.join(folder, "answers.jsonl")) as f:
        lines = [json.loads(line) for line in f]
    right = 0
    for line in lines:
        got = answer(Image.open(os.path.join(folder, line["image"])).convert("RGB"), [line["question"]])[0]
        right += got == line["answer"]
        if got != line["answer"]:
            print(f"{line['image']}: {line['question']}\n  should be {line['answer']}\n  answered  {got}")
    print(f"{right} of {len(lines)} answers right")


if __name__ == "__main__":
    functions = {f.__name__: f for f in (sheet, examples, score, generate, answers)}
    functions[sys.argv[1]](*sys.argv[2:])
