"""Synthetic scenes with known answers: coloured shapes on a plain ground, sometimes with a short text.

A scene is drawn at a multiple of 128x128 and reduced with Lanczos, which is what the image processor of the
model does with any picture. Whatever would make an answer ambiguous is kept out of the scenes: things never
touch, no two of them have nearly the same x (descriptions go from left to right), and "where" is only asked of a
shape whose centre is clearly inside one of the nine fields.

    rng = random.Random(1)
    scene = draw_scene(rng)                  # a Scene: .image (PIL, 128x128), .labels (for the auxiliary loss)
    for kind, question, answer in questions(scene, rng): ...
"""

import functools
import glob
import io
import math
import random
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SIDE = 128  # pixels on a side of what the model sees
PATCH = 8  # pixels on a side of one patch of its vision tower
GRID = SIDE // PATCH

COLORS = {
    "red": (214, 40, 40),
    "green": (46, 160, 67),
    "blue": (36, 84, 214),
    "yellow": (246, 205, 36),
    "orange": (244, 128, 28),
    "purple": (134, 56, 172),
    "black": (16, 16, 16),
    "white": (250, 250, 250),
}
GROUNDS = {"gray": (150, 150, 150), "pink": (244, 186, 200), "cyan": (120, 210, 220), "brown": (120, 84, 56)}
SHAPES = ["circle", "square", "triangle", "star"]
NUMBERS = ["none", "one", "two", "three", "four", "five", "six"]
ALPHABET = "ABCDEFGHJKLMNPRSTUVWXYZ23456789"  # without the look-alikes I, O, Q, 0 and 1
FONTS = ["DejaVuSans-Bold.ttf", "DejaVuSans.ttf", "LiberationSans-Bold.ttf"]

JITTER = 10  # each channel of a colour varies by this much from scene to scene
MIN_DX = 5.0  # least distance of two centres in x, so that "from left to right" is one order
FIELD = (0.4, 0.6)  # borders of the three columns (and rows) of the position words, as a share of the side
FIELD_MARGIN = 5.0  # "where" is only asked of shapes this far (pixels) from a border of a field

# Sizes of the label heads (see `labels_of`): kind, colour, character, group, group size, place in the text, field
HEADS = [6, len(COLORS) + len(GROUNDS), 1 + len(ALPHABET), 7, 6, 5, 10]
IGNORE = 255


@dataclass
class Thing:
    """One shape: what it is and where its centre lies (in pixels of the 128x128 picture)."""

    shape: str
    color: str
    x: float
    y: float
    r: float


@dataclass
class Scene:
    """What was drawn. `things` are in reading order (left to right)."""

    ground: str
    things: list
    text: str = ""
    text_color: str = ""
    image: Image.Image = None
    labels: np.ndarray = field(default=None, repr=False)

    def plain(self):
        """The scene without its pixels, for a JSON file."""
        return [self.ground, [[t.shape, t.color, t.x, t.y, t.r] for t in self.things], self.text, self.text_color]

    @staticmethod
    def from_plain(p):
        """Back from `plain`."""
        return Scene(p[0], [Thing(*t) for t in p[1]], p[2], p[3])


@functools.lru_cache(None)
def font_paths():
    """Files of the fonts in FONTS, in that order."""
    found = []
    for name in FONTS:
        hits = sorted(glob.glob(f"/usr/share/fonts/**/{name}", recursive=True))
        if not hits:
            raise SystemExit(f"font {name} is missing: apt-get install fonts-dejavu-core fonts-liberation")
        found.append(hits[0])
    return found


@functools.lru_cache(1024)
def font(index, size):
    """A loaded font."""
    return ImageFont.truetype(font_paths()[index], size)


def jitter(rng, color):
    """A colour near `color`."""
    return tuple(max(0, min(255, v + rng.randint(-JITTER, JITTER))) for v in color)


def draw_shape(draw, shape, x, y, rx, ry, fill, angle):
    """One filled shape around (x, y), squeezed to the radii rx and ry."""
    if shape == "circle":
        draw.ellipse([x - rx, y - ry, x + rx, y + ry], fill=fill)
        return
    corners, inner = {"square": (4, None), "triangle": (3, None), "star": (5, 0.45)}[shape]
    count = corners * 2 if inner else corners
    turn = angle - math.pi / 2 + (math.pi / 4 if shape == "square" else 0)
    points = []
    for i in range(count):
        a = turn + math.pi * 2 * i / count
        k = (1.2 if shape == "star" else 1.15) * (inner if inner and i % 2 else 1)
        points.append((x + rx * k * math.cos(a), y + ry * k * math.sin(a)))
    draw.polygon(points, fill=fill)


def field_of(x, y):
    """(column, row) of the field a point lies in, or None when it is too near a border."""
    out = []
    for v in (x, y):
        lo, hi = FIELD[0] * SIDE, FIELD[1] * SIDE
        if min(abs(v - lo), abs(v - hi)) < FIELD_MARGIN:
            return None
        out.append(0 if v < lo else 2 if v > hi else 1)
    return tuple(out)


def field_words(f):
    """The words of a field."""
    words = [w for w in (["top", "", "bottom"][f[1]], ["left", "", "right"][f[0]]) if w]
    return " ".join(words) or "center"


def groups_of(things):
    """Things of the same colour and shape together, in order of each group's leftmost member."""
    groups = {}
    for t in things:
        groups.setdefault((t.color, t.shape), []).append(t)
    return groups


def place_text(rng, fx=1.0, fy=1.0):
    """A random text with its font and box: (text, colour, font index, size, x, y, w, h), in 128x128 pixels; fx and
    fy: how much the picture is going to be squeezed."""
    while True:
        text = "".join(rng.choice(ALPHABET) for _ in range(rng.randint(1, 4)))
        index, size = rng.randrange(len(FONTS)), rng.uniform(25, 38)
        l, t, r, b = font(index, 100).getbbox(text)
        size = min(size, 116 * 100 / ((r - l) * fx))
        if size < 24:
            continue
        w, h = (r - l) * size / 100 * fx, (b - t) * size / 100 * fy
        x, y = rng.uniform(4, SIDE - w - 4), rng.uniform(4, SIDE - h - 4)
        return text, rng.choice(list(COLORS)), index, size, x, y, w, h


def draw_scene(rng, scale=None, text_share=0.55, compress=0.05, keep_large=False, aspect=None):
    """Draw a new scene. `scale`: how many times larger than 128x128 it is drawn before it is reduced (random when
    None); `compress`: share of scenes that go through JPEG first; `keep_large`: leave the picture at its drawn
    size (no labels then); `aspect`: width by height of the drawn picture, which the reduction to a square squeezes."""
    scale = scale or rng.choice([2, 2, 2, 3, 3, 4])
    fx, fy = (aspect**-0.5, aspect**0.5) if aspect else (1.0, 1.0)
    width, height = round(SIDE * scale / fx), round(SIDE * scale / fy)
    kx, ky = width / SIDE, height / SIDE  # pixels of the drawn picture per pixel of the reduced one
    ground = rng.choice(list(GROUNDS))
    scene = Scene(ground, [])
    image = Image.new("RGB", (width, height), jitter(rng, GROUNDS[ground]))
    draw = ImageDraw.Draw(image)
    ids = Image.new("L", (SIDE, SIDE), 0)  # 0 ground, 1.. shapes, 10.. characters
    draw_ids = ImageDraw.Draw(ids)
    boxes = []
    if rng.random() < text_share:
        text, color, index, size, x, y, w, h = place_text(rng, fx, fy)
        f = font(index, max(1, round(size * scale)))
        l, t, r, b = f.getbbox(text)
        draw.text((x * kx - l, y * ky - t), text, font=f, fill=jitter(rng, COLORS[color]))
        for i in range(len(text)):
            x0, x1 = x + (f.getlength(text[:i]) - l) / kx, x + (f.getlength(text[: i + 1]) - l) / kx
            draw_ids.rectangle([round(x0), round(y), round(x1) - 1, round(y + h)], fill=10 + i)
        boxes.append((x - 3, y - 3, x + w + 3, y + h + 3))
        scene.text, scene.text_color = text, color
    placed = []
    for _ in range(rng.choice([0, 1, 2, 2, 3, 3, 4, 5] if scene.text else [1, 1, 2, 2, 3, 3, 4, 5])):
        if placed and rng.random() < 0.3:
            shape, color = placed[rng.randrange(len(placed))].shape, placed[rng.randrange(len(placed))].color
        else:
            shape, color = rng.choice(SHAPES), rng.choice(list(COLORS))
        for _ in range(40):
            r = rng.uniform(10, 20)
            qx, qy = r * fx * 1.2 + 1, r * fy * 1.2 + 1
            x, y = rng.uniform(qx + 1, SIDE - qx - 1), rng.uniform(qy + 1, SIDE - qy - 1)
            clear = all(x + qx < a or x - qx > c or y + qy < b or y - qy > d for a, b, c, d in boxes)
            if clear and all(abs(x - t.x) >= MIN_DX for t in placed):
                angle = rng.uniform(-0.25, 0.25)
                draw_shape(draw, shape, x * kx, y * ky, r * scale, r * scale, jitter(rng, COLORS[color]), angle)
                draw_shape(draw_ids, shape, x, y, r * fx, r * fy, 1 + len(placed), angle)
                boxes.append((x - qx, y - qy, x + qx, y + qy))
                placed.append(Thing(shape, color, round(x, 2), round(y, 2), round(r, 2)))
                break
    if not placed and not scene.text:
        return draw_scene(rng, scale, text_share, compress, keep_large, aspect)
    if rng.random() < compress:
        packed = io.BytesIO()
        image.save(packed, "JPEG", quality=rng.randint(75, 95))
        image = Image.open(packed).convert("RGB")
    scene.image = image if keep_large else image.resize((SIDE, SIDE), Image.LANCZOS)
    order = sorted(range(len(placed)), key=lambda i: placed[i].x)
    scene.things = [placed[i] for i in order]
    if not keep_large:
        scene.labels = labels_of(scene, np.asarray(ids), {1 + i: k for k, i in enumerate(order)})
    return scene


def labels_of(scene, ids, rank):
    """uint8 [7, GRID, GRID]: per patch its kind (0 ground, 1-4 shape, 5 text), colour (COLORS, then GROUNDS),
    character, number of its group in the description, size of that group, place in the text, field of the centre.
    IGNORE where a label has no meaning. `ids` says per pixel what was drawn there."""
    table = np.full((14, len(HEADS)), IGNORE, np.uint8)
    table[0, :2] = 0, len(COLORS) + list(GROUNDS).index(scene.ground)
    groups = list(groups_of(scene.things))
    sizes = [len(v) for v in groups_of(scene.things).values()]
    for i, k in rank.items():
        t = scene.things[k]
        g = groups.index((t.color, t.shape))
        f = field_of(t.x, t.y)
        table[i] = (1 + SHAPES.index(t.shape), list(COLORS).index(t.color), 0, 1 + g, sizes[g], 0, IGNORE if f is None else f[0] + 3 * f[1])
    for i, ch in enumerate(scene.text):
        table[10 + i] = (5, list(COLORS).index(scene.text_color), 1 + ALPHABET.index(ch), 0, 0, 1 + i, 9)
    patches = ids.reshape(GRID, PATCH, GRID, PATCH).swapaxes(1, 2).reshape(GRID * GRID, PATCH * PATCH)
    counts = (patches[:, :, None] == np.arange(1, 14)).sum(1)
    best = np.where(counts.max(1) >= 6, counts.argmax(1) + 1, 0)
    return table[best].T.reshape(len(HEADS), GRID, GRID)


# ---------------------------------------------------------------------------------------------------------------
# Questions and answers

PHRASES = {
    "describe": [
        "Describe the image.",
        "Describe this image.",
        "Describe the picture.",
        "Describe this picture in one sentence.",
        "What is in the image?",
        "What is in the picture?",
        "What is in this image?",
        "What do you see?",
        "What can you see in this picture?",
        "Caption this image.",
        "What is shown here?",
        "Tell me what you see.",
        "What does the image show?",
        "Can you describe the image?",
    ],
    "shapes": [
        "Which shapes are there?",
        "Which shapes are in the image?",
        "What shapes are there?",
        "What shapes are in the image?",
        "What shapes do you see?",
        "Name the shapes.",
        "List the shapes.",
        "What kinds of shapes are in the picture?",
    ],
    "count": [
        "How many shapes are there?",
        "How many shapes are in the image?",
        "How many objects are in the image?",
        "How many objects are there?",
        "How many shapes do you see?",
        "Count the shapes.",
        "Count the objects.",
        "How many things are in the picture?",
    ],
    "count_of": [
        "How many {}s are there?",
        "How many {}s are in the image?",
        "How many {}s do you see?",
        "How many {}s can you see in the picture?",
        "Count the {}s.",
        "What is the number of {}s?",
    ],
    "color": [
        "What color is the {}?",
        "Which color is the {}?",
        "What is the color of the {}?",
        "Which color does the {} have?",
        "What color does the {} have?",
        "Tell me the color of the {}.",
    ],
    "background": [
        "What color is the background?",
        "What is the background color?",
        "What is the color of the background?",
        "Which color is the background?",
        "Which color does the background have?",
        "Name the background color.",
    ],
    "read": [
        "What does the text say?",
        "Read the text.",
        "Read the text in the image.",
        "What is written here?",
        "What is written in the image?",
        "What text is in the image?",
        "What text do you see?",
        "What is the text?",
        "Which letters are there?",
        "Is there any text?",
        "Transcribe the text.",
    ],
    "position": [
        "Where is the {}?",
        "Where is the {} in the image?",
        "Where do you see the {}?",
        "Where can I find the {}?",
        "What is the position of the {}?",
        "In which part of the image is the {}?",
    ],
}

# Further, mostly shorter wordings: used in training only
MORE_PHRASES = {
    "describe": [
        "Describe.",
        "Describe it.",
        "Describe this.",
        "Describe the scene.",
        "What is this?",
        "What's this?",
        "What's in the picture?",
        "What's in the image?",
        "What does this picture show?",
        "Caption.",
        "Please describe the image.",
    ],
    "shapes": ["Shapes?", "Which shapes?", "What shapes?", "What are the shapes?", "Which shapes can you see?", "Which shapes do you see?"],
    "count": [
        "How many?",
        "How many shapes?",
        "How many objects?",
        "Number of shapes?",
        "What is the number of shapes?",
        "How many shapes are in the picture?",
        "How many shapes are there in total?",
    ],
    "count_of": ["How many {}s?", "Number of {}s?", "How many {}s are in the picture?", "How many {}s are there in the image?"],
    "color": ["{} color?", "Color of the {}?", "What's the color of the {}?", "Which color has the {}?", "What color is the {} in the image?"],
    "background": [
        "Background?",
        "Background color?",
        "Color of the background?",
        "What's the background color?",
        "What is the background?",
        "Which background color is it?",
    ],
    "read": [
        "Text?",
        "OCR",
        "Read.",
        "Read it.",
        "Read this.",
        "What does it say?",
        "What's written here?",
        "What's the text?",
        "Which text is there?",
        "What text is there?",
        "Is there text?",
        "Is there text in the image?",
        "Can you read the text?",
        "What does the image say?",
        "What is written?",
    ],
    "position": ["Where's the {}?", "Where is the {} in the picture?", "Position of the {}?", "Locate the {}.", "{} position?", "Find the {}."],
}


def casual(question, rng):
    """Sometimes write a question as people type it: British spelling, lower case, no final mark."""
    if rng.random() < 0.3:
        question = question.replace("color", "colour")
    if rng.random() < 0.15:
        question = question[0].lower() + question[1:]
    if rng.random() < 0.15:
        question = question[:-1]
    return question


def join(parts):
    """'a', 'a and b', 'a, b and c'."""
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def phrase(color, shape, n):
    """'a red star', 'an orange circle', 'two blue squares'."""
    if n > 1:
        return f"{NUMBERS[n]} {color} {shape}s"
    return f"{'an' if color == 'orange' else 'a'} {color} {shape}"


def describe(scene):
    """The one-sentence description: groups from left to right, then the text, then the background."""
    parts = [phrase(c, s, len(v)) for (c, s), v in groups_of(scene.things).items()]
    out = join(parts) if parts else ""
    if scene.text:
        out += (" and " if parts else "") + f'the text "{scene.text}"'
    out += f" on a {scene.ground} background."
    return out[0].upper() + out[1:]


def questions(scene, rng, plain_describe=False, more=False):
    """A list of (kind, question, answer) for a scene; wordings are random. `plain_describe`: always ask
    "Describe the image." for the description; `more`: use MORE_PHRASES too."""

    def ask(kind, *what):
        wording = rng.choice(MORE_PHRASES[kind] if more and rng.random() < 0.4 else PHRASES[kind]).format(*what)
        return casual(wording[0].upper() + wording[1:], rng)

    things = scene.things
    shapes = list(dict.fromkeys(t.shape for t in things))
    out = [("describe", PHRASES["describe"][0] if plain_describe or rng.random() < 0.3 else ask("describe"), describe(scene))]
    out.append(("shapes", ask("shapes"), (join(["a " + s for s in shapes]).capitalize() if shapes else "None") + "."))
    out.append(("count", ask("count"), NUMBERS[len(things)].capitalize() + "."))
    shape = rng.choice(shapes) if shapes and rng.random() < 0.8 else rng.choice(SHAPES)
    n = sum(t.shape == shape for t in things)
    out.append(("count", ask("count_of", shape), NUMBERS[n].capitalize() + "."))
    # A thing can be asked for by its shape when that is unique, else by colour and shape when those are.
    by_name = {}
    for t in things:
        by_name.setdefault(t.shape, []).append(t)
    for t in things:
        by_name.setdefault(f"{t.color} {t.shape}", []).append(t)
    single = [(name, v[0]) for name, v in by_name.items() if len(v) == 1]
    plain = [(name, t) for name, t in single if " " not in name]
    if plain and not (scene.text and rng.random() < 0.15):
        name, t = rng.choice(plain)
        out.append(("color", ask("color", name), t.color.capitalize() + "."))
    elif scene.text:
        out.append(("color", ask("color", "text"), scene.text_color.capitalize() + "."))
    placed = [(name, t) for name, t in (single if rng.random() < 0.4 else plain) if field_of(t.x, t.y)]
    if placed:
        name, t = rng.choice(placed)
        out.append(("position", ask("position", name), field_words(field_of(t.x, t.y)).capitalize() + "."))
    if scene.text:
        out.append(("read", ask("read"), scene.text + "."))
    else:
        out.append(("read_none", ask("read"), "There is no text."))
    out.append(("background", ask("background"), scene.ground.capitalize() + "."))
    return out
