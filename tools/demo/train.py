#!/usr/bin/env python3
"""Train the demo model from nothing, on a CPU.

    python train.py OUT --minutes 100 [--processes 2] [--state STATE.pt [--resume]]

OUT receives a loadable checkpoint every few minutes. Several single-threaded processes train data-parallel (they get
on with other programs on the machine better than threads do). The first part of the time trains the vision tower
alone on labels that the scenes know per patch (kind, colour, character, ...); then tower and language model train
together with the patch labels as an auxiliary loss. Every sequence holds one picture and several questions, each of
which sees the picture and itself only, so that the picture is paid for once and the result is that of single turns.
"""

import argparse
import math
import os
import random
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")
import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
import torch.multiprocessing as mp  # noqa: E402
import torch.nn.functional as F  # noqa: E402

import model as net  # noqa: E402
import scenes  # noqa: E402

LENGTH = 256  # tokens of a sequence
PACK = 64  # scenes that a generator hands over at once
POOL = 16000  # scenes a process keeps; each is used REUSE times on average
REUSE = 3
NOT_SQUARE = 0.25  # share of scenes drawn on a canvas that is not square (it is squeezed to one)
VALIDATION_SEED = 77001  # scenes for the reports during training; heldout.py has another seed
HEAD_WEIGHTS = [1.0, 1.0, 1.5, 0.5, 0.5, 0.5, 0.5]


def generate(queue, seed):
    """Draw scenes for ever (own process, low priority)."""
    os.nice(8)
    rng = random.Random(seed)
    while True:
        pack = [scenes.draw_scene(rng, aspect=math.exp(rng.uniform(-0.5, 0.5)) if rng.random() < NOT_SQUARE else None) for _ in range(PACK)]
        queue.put((np.stack([np.asarray(s.image) for s in pack]), np.stack([s.labels for s in pack]), [s.plain() for s in pack]))


class Encoder:
    """Scenes to token sequences."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.prefix = tokenizer.encode(net.PREFIX).ids
        self.image_at = self.prefix.index(tokenizer.token_to_id("<image>"))
        self.pad = tokenizer.token_to_id("<|im_end|>")

    def turns(self, pairs):
        """[(ids, length of the question part)] of (question, answer) pairs."""
        q = self.tokenizer.encode_batch([a + net.BEFORE_ANSWER for a, _ in pairs])
        a = self.tokenizer.encode_batch([" " + b + "<end_of_utterance>" for _, b in pairs])
        return [(x.ids + y.ids, len(x.ids)) for x, y in zip(q, a)]

    def batch(self, rows):
        """rows: per picture a list of (question, answer). Returns ids, positions, mask, targets, turn numbers.
        A target stands at the place that predicts it; -100 elsewhere."""
        n, p = len(rows), len(self.prefix)
        ids = np.full((n, LENGTH), self.pad)
        positions = np.zeros((n, LENGTH), np.int64)
        targets = np.full((n, LENGTH), -100)
        turn = np.full((n, LENGTH), -1)
        ids[:, :p], positions[:, :p], turn[:, :p] = self.prefix, np.arange(p), 0
        for i, pairs in enumerate(rows):
            at = p
            for j, (seq, start) in enumerate(self.turns(pairs)):
                if at + len(seq) > LENGTH:
                    continue
                end = at + len(seq)
                ids[i, at:end] = seq
                positions[i, at:end] = np.arange(p, p + len(seq))
                turn[i, at:end] = j + 1
                targets[i, at + start - 1 : end - 1] = seq[start:]
                at = end
        same = (turn[:, None, :] == 0) | (turn[:, None, :] == turn[:, :, None])
        mask = np.where(same & np.tri(LENGTH, dtype=bool), 0.0, -1e9).astype(np.float32)
        return (*map(torch.from_numpy, (ids, positions)), torch.from_numpy(mask)[:, None], torch.from_numpy(targets), turn)


def pick(scene, rng, more=False):
    """The questions of one training sequence: description and text nearly always, four of the others."""
    every = scenes.questions(scene, rng, more=more)
    first = [q for q in every if q[0] == "describe" or q[0] == "read" or (q[0] == "read_none" and rng.random() < 0.4)]
    rest = [q for q in every if q[0] not in ("describe", "read", "read_none")]
    weights = {"background": 0.4, "position": 1.3}
    while rest and len(first) < 6:
        first.append(rest.pop(rng.choices(range(len(rest)), [weights.get(q[0], 1.0) for q in rest])[0]))
    return [q[1:] for q in first]


def pixels_of(images, noise=None):
    """uint8 [N, SIDE, SIDE, 3] to what the tower takes; `noise`: a numpy generator for a slight augmentation."""
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)
    if noise is not None:
        n = len(images)
        x += torch.from_numpy(noise.normal(0, 0.015, (n, 3, 1, 1)).astype(np.float32))
        some = torch.from_numpy((noise.random((n, 1, 1, 1)) < 0.3) * noise.random((n, 1, 1, 1)) * 0.03).float()
        x += torch.randn_like(x) * some
    return x


class Muon:
    """Momentum whose step is orthogonalised (Newton-Schulz) for matrices, AdamW for all else."""

    def __init__(self, named):
        self.matrices, self.others = {}, []
        for name, p in named:
            hidden = p.ndim == 2 and ("layers." in name or "modality_projection" in name)
            if hidden:
                self.matrices.setdefault(tuple(p.shape), []).append(p)
            else:
                self.others.append(p)
        self.momentum = {s: [torch.zeros_like(p) for p in ps] for s, ps in self.matrices.items()}
        self.adam = torch.optim.AdamW(self.others, lr=1e-3, betas=(0.9, 0.98), weight_decay=0.0, foreach=True)

    @staticmethod
    def orthogonal(g):
        """The nearest orthogonal matrices, roughly. g: [n, rows, columns]"""
        turned = g.shape[1] > g.shape[2]
        x = g.transpose(1, 2) if turned else g
        x = (x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)).to(net.BF)
        for a, b, c in ((3.4445, -4.7750, 2.0315),) * 5:
            s = x @ x.transpose(1, 2)
            x = a * x + (b * s + c * (s @ s)) @ x
        return (x.transpose(1, 2) if turned else x).float()

    @torch.no_grad()
    def step(self, matrix_lr, other_lr, decay=0.02):
        """One step with the gradients in place."""
        for shape, ps in self.matrices.items():
            live = [(p, m) for p, m in zip(ps, self.momentum[shape]) if p.grad is not None]
            if not live:
                continue
            for p, m in live:
                m.lerp_(p.grad, 0.05)
            update = self.orthogonal(torch.stack([p.grad.lerp(m, 0.95) for p, m in live]))
            for (p, _), u in zip(live, update):
                p.mul_(1 - matrix_lr * decay).add_(u, alpha=-matrix_lr * max(1.0, shape[0] / shape[1]) ** 0.5)
        self.adam.param_groups[0]["lr"] = other_lr
        self.adam.step()

    def state(self):
        """For `load`."""
        return {"momentum": self.momentum, "adam": self.adam.state_dict()}

    def load(self, state):
        """From `state`."""
        self.momentum = state["momentum"]
        self.adam.load_state_dict(state["adam"])


def label_loss(m, features, labels):
    """The auxiliary loss and the share of characters read rightly per patch."""
    out, total = m.label_logits(features).flatten(0, 1).split(scenes.HEADS, -1), 0.0
    y = labels.permute(1, 0, 2, 3).flatten(1).long()
    right = torch.zeros(())
    for i, (logits, target, weight) in enumerate(zip(out, y, HEAD_WEIGHTS)):
        keep = (y[0] == 5) if i == 2 else (target != scenes.IGNORE)
        if keep.any():
            total = total + weight * F.cross_entropy(logits[keep], target[keep])
            if i == 2:
                right = (logits[keep].argmax(-1) == target[keep]).float().mean()
    return total, right


@torch.no_grad()
def evaluate(m, encoder, rows, images, batch=20):
    """Share of exact answers by kind. rows: per picture a list of (kind, question, answer). A greedy answer is exact
    if and only if every token of it is the most likely one after its predecessors, so one pass decides."""
    good, seen = {}, {}
    for i in range(0, len(rows), batch):
        part = rows[i : i + batch]
        features = m.see(pixels_of(images[i : i + batch]))
        most = max(len(r) for r in part)
        half = (most + 1) // 2
        for lo in (0, half):  # all questions of a picture may be longer than one sequence
            cut = [r[lo : lo + half] for r in part]
            ids, positions, mask, targets, turn = encoder.batch([[q[1:] for q in r] for r in cut])
            guess = m.logits(m.text(features, ids, positions, mask, encoder.image_at)).argmax(-1).numpy()
            t = targets.numpy()
            for row, questions in enumerate(cut):
                for j, q in enumerate(questions):
                    at = (turn[row] == j + 1) & (t[row] != -100)
                    assert at.any()
                    seen[q[0]] = seen.get(q[0], 0) + 1
                    good[q[0]] = good.get(q[0], 0) + bool((guess[row][at] == t[row][at]).all())
    return {k: (good[k] / seen[k], seen[k]) for k in sorted(seen)}


def report(result):
    """`evaluate`'s result in one line."""
    return " ".join(f"{k} {v:.3f}" for k, (v, _) in result.items())


def train(rank, args, tokenizer_text):
    """One process of the training."""
    from tokenizers import Tokenizer

    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(args.port))
    dist.init_process_group("gloo", rank=rank, world_size=args.processes)
    tokenizer = Tokenizer.from_str(tokenizer_text)
    encoder = Encoder(tokenizer)
    m = net.Model(tokenizer.get_vocab_size())
    named = list(m.named_parameters())
    optimizer = Muon(named)
    average = {k: p.detach().clone() for k, p in named}
    step, seed = 0, args.seed * 1000 + rank
    if args.resume:
        state = torch.load(args.state, weights_only=True)
        m.load_state_dict(state["model"])
        optimizer.load(state["optimizer"])
        average, step = state["average"], state["step"]
        seed += step * 10
    rng, noise = random.Random(seed), np.random.default_rng(seed)
    torch.manual_seed(seed)
    queue = mp.Queue(6)
    mp.Process(target=generate, args=(queue, seed + 500), daemon=True).start()
    if rank == 0:
        print(f"parameters {sum(p.numel() for k, p in named if 'heads.' not in k) / 1e6:.2f} M, vocabulary {tokenizer.get_vocab_size()}", flush=True)
        check = random.Random(VALIDATION_SEED)
        drawn = [scenes.draw_scene(check) for _ in range(200)]
        rows = [scenes.questions(s, check, plain_describe=True) for s in drawn]
        pictures = np.stack([np.asarray(s.image) for s in drawn])
        log = open(args.log, "a") if args.log else None

    def say(text):
        if rank == 0:
            print(text, flush=True)
            if log:
                log.write(time.strftime("%H:%M:%S ") + text + "\n"), log.flush()

    images, labels, plains = [], [], []
    total = sum(p.numel() for _, p in named)
    flat = torch.zeros(total + 1)
    start = last_export = time.time()
    f, sums, began = 0.0, np.zeros(4), time.time()
    alone_until = 0.0 if args.resume else args.alone
    while f < 1:
        while len(images) < 2048 or step % max(1, PACK * REUSE // args.batch) == 0:
            a, b, c = queue.get()
            images.extend(a), labels.extend(b), plains.extend(c)
            if len(images) > POOL:
                del images[:PACK], labels[:PACK], plains[:PACK]
            if len(images) >= 2048:
                break
        chosen = rng.sample(range(len(images)), args.batch)
        alone = f < alone_until
        x = pixels_of(np.stack([images[i] for i in chosen]), noise)
        features = m.see(x)
        aux, right = label_loss(m, features, torch.from_numpy(np.stack([labels[i] for i in chosen])))
        if alone:
            loss, objective = torch.zeros(()), aux
        else:
            ids, positions, mask, targets, _ = encoder.batch([pick(scenes.Scene.from_plain(plains[i]), rng, args.more_wordings) for i in chosen])
            hidden = m.text(features, ids, positions, mask, encoder.image_at)
            keep = targets != -100
            loss = F.cross_entropy(m.logits(hidden[keep]), targets[keep])
            objective = loss + args.aux * aux
        for _, p in named:
            p.grad = None
        objective.backward()
        flat.zero_()
        at = 0
        for _, p in named:
            if p.grad is not None:
                flat[at : at + p.numel()] = p.grad.flatten()
            at += p.numel()
        flat[-1] = (time.time() - start) / (60 * args.minutes) * args.processes if rank == 0 else 0.0
        dist.all_reduce(flat)
        flat /= args.processes
        f = float(flat[-1])
        norm = float(flat[:-1].norm())
        clip = min(1.0, 2.0 / (norm + 1e-6))
        at = 0
        for _, p in named:
            if p.grad is not None:
                p.grad.copy_(flat[at : at + p.numel()].view_as(p)).mul_(clip)
            at += p.numel()
        # Learning rate: warm up, stay, and from `--decay` of the time on fall linearly to nothing
        k = min(1.0, (step + 1) / 100) * (1.0 if f < args.decay else max(0.0, (1 - f) / (1 - args.decay)) * 0.99 + 0.01)
        optimizer.step(args.matrix_lr * k, args.other_lr * k)
        step += 1
        if rank == 0:
            with torch.no_grad():
                w = 1 - min(0.995, (step + 1) / (step + 20))
                torch._foreach_lerp_([average[n] for n, _ in named], [p.detach() for _, p in named], w)
        sums += (loss.item(), aux.item(), right.item(), 1)
        if step % 50 == 0:
            a, b, c, n = sums
            say(f"step {step} {time.time() - start:.0f}s loss {a / n:.4f} aux {b / n:.3f} char {c / n:.3f} norm {norm:.2f} lr {k:.3f} {args.batch * args.processes * n / (time.time() - began):.1f} img/s")
            sums, began = np.zeros(4), time.time()
        if rank == 0 and (time.time() - last_export > 60 * args.every or f >= 1):
            last_export = time.time()
            live = {n: p.detach().clone() for n, p in named}
            m.load_state_dict(average)
            if not alone:
                say(f"exact {step}: " + report(evaluate(m, encoder, rows, pictures)))
            net.export(m.state_dict(), tokenizer, args.out)
            m.load_state_dict(live)
            if args.state:
                torch.save({"model": live, "average": average, "optimizer": optimizer.state(), "step": step}, args.state + ".part")
                os.replace(args.state + ".part", args.state)
            began += time.time() - last_export  # the time of a report does not count
    dist.barrier()
    dist.destroy_process_group()


def main():
    """Read the arguments, start the processes."""
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("out", help="folder for the checkpoint")
    p.add_argument("--minutes", type=float, default=100)
    p.add_argument("--processes", type=int, default=2)
    p.add_argument("--batch", type=int, default=24, help="pictures per process and step")
    p.add_argument("--matrix-lr", type=float, default=0.01)
    p.add_argument("--other-lr", type=float, default=2e-3)
    p.add_argument("--alone", type=float, default=0.1, help="share of the time for the tower alone")
    p.add_argument("--decay", type=float, default=0.5, help="share of the time after which the learning rate falls")
    p.add_argument("--aux", type=float, default=0.3, help="weight of the auxiliary loss")
    p.add_argument("--every", type=float, default=10, help="minutes between exports")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--state", help="file for everything needed to go on")
    p.add_argument("--resume", action="store_true", help="go on from --state")
    p.add_argument("--more-wordings", action="store_true", help="also train on scenes.MORE_PHRASES")
    p.add_argument("--log", help="also append reports to this file")
    p.add_argument("--port", type=int, default=29533)
    args = p.parse_args()
    from tokenizers import Tokenizer

    known = os.path.join(args.out, "tokenizer.json")
    tokenizer = Tokenizer.from_file(known) if os.path.exists(known) else net.build_tokenizer()
    mp.spawn(train, args=(args, tokenizer.to_str()), nprocs=args.processes)


if __name__ == "__main__":
    main()
