r"""Build the data set `bundled:emoji`: pictures from Noto Color Emoji, names and keywords from CLDR through emojibase.

    python experiments/data/build_emoji.py --source=DIR      # DIR: NotoColorEmoji.ttf, emojibase_en.json, emojibase_groups.json

Debian's fonts-noto-color-emoji 2.042 and npm's emojibase-data 17.0.0 (en/data.json, meta/groups.json) were used; it needs
fontTools. Writes ssl_jax/data/bundled/emoji/{images.webp, emoji.json}: one sheet of 64 x 64 pictures over white, row by row,
and their names, keywords and groups.

Content: every emoji with a picture in the font, with the skin tones of a single person or hand (not the 25 mixed
tones of a couple), but no flags, letters or bare components (a skin tone, a hair style). The name of a flag's country cannot be
inferred from its picture, and the group of a flag is obvious from its shape: flags would depress retrieval
and inflate zero-shot classification without measuring either.

The split is by family: an emoji, its skin tones and its variants of another gender, hair or direction ("man running",
"woman running facing right") are in the same split, and so are emoji with the same picture. About 15 % of each CLDR group is
test.
"""

import argparse
import collections
import hashlib
import io
import json
import pathlib
import random
import re

import numpy as np
from fontTools.ttLib import TTFont
from PIL import Image

SIDE = 64
COLUMNS = 64
SEED = 0
TEST_SHARE = 0.15
EXCLUDED = ("component", "flags")
OUT = pathlib.Path(__file__).parents[2] / "ssl_jax/data/bundled/emoji"

TONES = {0x1F3FB, 0x1F3FC, 0x1F3FD, 0x1F3FE, 0x1F3FF}
HAIR = {0x1F9B0, 0x1F9B1, 0x1F9B2, 0x1F9B3}
GENDER = {0x2640, 0x2642}
IGNORED = TONES | HAIR | GENDER | {0xFE0F, 0x200D, 0x27A1}  # 27A1: "facing right"
PERSON = {cp: 0x1F9D1 for cp in (0x1F466, 0x1F467, 0x1F468, 0x1F469, 0x1F9D2)}  # boy, girl, man, woman, child
WORDS = re.compile(
    r"\b(man|woman|person|men|women|people|boy|girl|child|old|older|prince|princess|with crown|mr|mrs|mx|santa|"
    r"facing right|and|in|with)\b|[:,.]"
)


class Font:
    """The bitmap strikes of a CBDT font, by code points."""

    def __init__(self, path):
        font = TTFont(path, lazy=True)
        self.strikes, self.cmap = font["CBDT"].strikeData[0], font.getBestCmap()
        self.ligatures = {
            (first, *ligature.Component): ligature.LigGlyph
            for lookup in font["GSUB"].table.LookupList.Lookup
            if lookup.LookupType == 4
            for table in lookup.SubTable
            for first, ligatures in table.ligatures.items()
            for ligature in ligatures
        }

    def picture(self, hexcode: str) -> np.ndarray | None:
        """Return u8[SIDE, SIDE, 3] over white, or None if the font has no single glyph for the sequence."""
        whole = [int(code, 16) for code in hexcode.split("-")]
        for codes in (whole, [code for code in whole if code != 0xFE0F]):
            if any(code not in self.cmap for code in codes):
                continue
            names = tuple(self.cmap[code] for code in codes)
            glyph = names[0] if len(names) == 1 else self.ligatures.get(names)
            if glyph in self.strikes:
                image = Image.open(io.BytesIO(self.strikes[glyph].imageData)).convert("RGBA")
                side = max(image.size)
                square = Image.new("RGBA", (side, side), "white")
                square.alpha_composite(image, ((side - image.width) // 2, (side - image.height) // 2))
                return np.asarray(square.convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS))
        return None


def families(records: list[dict]) -> list[int]:
    """Return a family number for each record, equal for variants by code points, by name or by picture."""
    parent = list(range(len(records)))

    def root(i):
        while parent[i] != i:
            i = parent[i]
        return i

    seen = {}
    for i, record in enumerate(records):
        codes = [int(code, 16) for code in record["hexcode"].split("-")]
        keys = [
            ("codes", tuple(sorted(PERSON.get(code, code) for code in codes if code not in IGNORED)) or tuple(codes)),
            ("picture", hashlib.sha256(record["pictures"][0].tobytes()).hexdigest()),
        ]
        if record["group"] == "people-body":
            keys.append(("name", " ".join(WORDS.sub(" ", record["name"].lower()).split())))
        for key in keys:
            parent[root(i)] = root(seen.setdefault(key, i))
    return [root(i) for i in range(len(records))]


def split(records: list[dict]) -> None:
    """Mark about TEST_SHARE of each group's emoji as test, whole families at a time."""
    generator = random.Random(SEED)
    members = collections.defaultdict(list)
    for record, family in zip(records, families(records), strict=True):
        record["family"] = family
        members[family].append(record)
    for group in sorted({record["group"] for record in records}):
        numbers = sorted(number for number, of in members.items() if of[0]["group"] == group)
        generator.shuffle(numbers)
        wanted, taken = round(TEST_SHARE * sum(r["group"] == group for r in records)), 0
        for number in numbers:
            test = taken + len(members[number]) <= wanted
            taken += len(members[number]) if test else 0
            for record in members[number]:
                record["split"] = "test" if test else "train"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=pathlib.Path, required=True)
    source = parser.parse_args().source
    font = Font(source / "NotoColorEmoji.ttf")
    names = json.loads((source / "emojibase_groups.json").read_text())
    records = []
    for entry in sorted(json.loads((source / "emojibase_en.json").read_text()), key=lambda e: e.get("order", 1 << 30)):
        if "group" not in entry or names["groups"][str(entry["group"])] in EXCLUDED:
            continue
        picture = font.picture(entry["hexcode"])
        if picture is None:
            continue
        pictures, tones = [picture], []
        for skin in entry.get("skins", []):
            tone = skin.get("tone")
            picture = font.picture(skin["hexcode"]) if isinstance(tone, int) else None
            if picture is not None:
                tones.append({"tone": tone, "name": skin["label"], "hexcode": skin["hexcode"]})
                pictures.append(picture)
        records.append(
            {
                "name": entry["label"], "keywords": entry.get("tags", []), "hexcode": entry["hexcode"],
                "group": names["groups"][str(entry["group"])], "subgroup": names["subgroups"][str(entry["subgroup"])],
                "tones": tones, "pictures": pictures,
            }
        )  # fmt: skip
    split(records)

    pictures = []
    for record in records:
        for holder, picture in zip([record, *record["tones"]], record.pop("pictures"), strict=True):
            holder["image"] = len(pictures)
            pictures.append(picture)
    rows = -(-len(pictures) // COLUMNS)
    sheet = np.full((rows * COLUMNS, SIDE, SIDE, 3), 255, np.uint8)
    sheet[: len(pictures)] = pictures
    sheet = sheet.reshape(rows, COLUMNS, SIDE, SIDE, 3).swapaxes(1, 2).reshape(rows * SIDE, COLUMNS * SIDE, 3)
    sheet = np.clip(np.round(sheet / 8) * 8, 0, 255).astype(np.uint8)  # five bits per channel: half the size, no visible change
    OUT.mkdir(exist_ok=True)
    Image.fromarray(sheet).save(OUT / "images.webp", lossless=True, quality=100, method=6)
    lines = ",\n".join(json.dumps(record, ensure_ascii=False, sort_keys=True) for record in records)
    (OUT / "emoji.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")

    for group in sorted({r["group"] for r in records}):
        of = [r for r in records if r["group"] == group]
        print(f"{group}: {len(of)} emoji, {sum(r['split'] == 'test' for r in of)} of them test, "
              f"{sum(len(r['tones']) for r in of)} skin tones")  # fmt: skip
    print(f"{len(records)} emoji, {len(pictures)} pictures")


if __name__ == "__main__":
    main()
