"""The requests of a workload and the right answers, computed without any server: a JSON list of pairs.

python expected.py FIRST      with $PEERS_MODEL, and models/ in $PYTHONPATH; numbers start with FIRST
"""

import base64
import io
import json
import random
import sys

import chosen

TEXTS = (
    "Where is my parcel?",
    "The screen stays black after the update, and holding the power button does nothing.",
    "Thank you, that was quick!",
    "I would like to change the address of an order that I placed yesterday evening.",
)


def requests(first):
    """What is sent: pictures, texts or numbers, by what the workload reads."""
    name = chosen.preprocess.__module__
    if name == "pictures":
        return [{"image": base64.b64encode(_jpeg(seed)).decode()} for seed in range(8)]
    if name == "embeddings":
        return [{"text": f"{text} ({number})"} for number in range(4) for text in TEXTS]
    return [{"number": number} for number in range(first, first + 64)]


def _jpeg(seed):
    """A picture of coloured boxes, 1024 x 768, about as large as a photograph of that size."""
    from PIL import Image, ImageDraw

    chance = random.Random(seed)
    tone = [60 * (seed % 4) + 20, 200 - 25 * seed, 30 * seed]
    picture = Image.new("RGB", (1024, 768), tuple(tone))
    draw = ImageDraw.Draw(picture)
    for _ in range(400):
        x, y = chance.randrange(1024), chance.randrange(768)
        colour = tuple(min(255, max(0, level + chance.randrange(-90, 90))) for level in tone)
        draw.rectangle((x, y, x + chance.randrange(120), y + chance.randrange(120)), fill=colour)
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=90)
    return file.getvalue()


if __name__ == "__main__":
    model = chosen.load()
    pairs = []
    for request in requests(int(sys.argv[1])):
        [output] = chosen.predict_rows([chosen.preprocess(request)], model)
        pairs.append((request, chosen.postprocess(output)))
    print(json.dumps(pairs))
