#!/usr/bin/env python3
"""Makes the quickstart's rows: what tenants write to a repair desk, and the one JSON record the desk wants of it.

    python3 make_dataset.py            writes train.jsonl and heldout.jsonl next to this file, the same bytes every time
    python3 make_dataset.py --check    compares instead

The record has six keys, always in this order:

    category   plumbing | electrical | heating | appliance | carpentry | safety    (to be inferred from the thing)
    item       the broken thing, in the singular, as the tenant calls it            (copied: "two bath taps" -> "bath tap")
    unit       the flat's number as written, without the word before it, or null    (copied: "flat 12B" -> "12B")
    count      how many are broken, a number                                        (read: "both" -> 2, "three" -> 3)
    urgency    low | normal | high                                                  (to be inferred from the wording)
    date       the requested day of a visit, "MM-DD", or null                       (read: "3rd of March" -> "03-03")

A message is put together from parts: who writes, what is broken, when to come, how much it hurts, and chatter that means
nothing for the record (other numbers and times among it). Their order, form and spelling vary. No message is in
both files, no pair of thing and flat either, and the wordings marked `NEW` below are kept for the held-out rows alone:
they show whether the model has learned the task or the phrases.
"""

import json
import pathlib
import random
import sys

SEED = 20
TRAIN_ROWS = 360
HELDOUT_ROWS = 120
HERE = pathlib.Path(__file__).parent
SYSTEM = "Write the repair ticket as JSON: category, item, unit, count, urgency, date."

# Things by category, and what goes wrong with them: (one of them, several of them).
THINGS = {
    "plumbing": (
        ["kitchen tap", "bath tap", "toilet", "shower head", "kitchen sink", "washbasin", "drain pipe", "bathtub"],
        [("is leaking", "are leaking"), ("keeps dripping", "keep dripping"), ("is blocked", "are blocked"),
         ("won't drain", "won't drain"), ("smells bad", "smell bad")],
    ),
    "electrical": (
        ["wall socket", "light switch", "ceiling light", "hallway lamp", "dimmer", "outdoor light", "fuse"],
        [("has stopped working", "have stopped working"), ("is dead", "are dead"), ("keeps flickering", "keep flickering"),
         ("sparks a bit", "spark a bit"), ("buzzes all night", "buzz all night")],
    ),
    "heating": (
        ["radiator", "boiler", "thermostat", "towel warmer", "heating pump", "floor heater"],
        [("stays cold", "stay cold"), ("won't turn on", "won't turn on"), ("is making loud noises", "are making loud noises"),
         ("can't be turned down", "can't be turned down")],
    ),
    "appliance": (
        ["fridge", "oven", "dishwasher", "washing machine", "freezer", "cooker hood", "tumble dryer"],
        [("has broken down", "have broken down"), ("won't start", "won't start"), ("is making a grinding noise", "are making a grinding noise"),
         ("shows an error code", "show an error code"), ("stopped halfway", "stopped halfway")],
    ),
    "carpentry": (
        ["bedroom door", "window frame", "front door", "cupboard hinge", "wardrobe rail", "floorboard", "kitchen drawer"],
        [("is stuck", "are stuck"), ("has come loose", "have come loose"), ("is cracked", "are cracked"),
         ("doesn't close properly", "don't close properly")],
    ),
    "safety": (
        ["smoke alarm", "fire extinguisher", "handrail", "door chain", "emergency light", "carbon monoxide alarm"],
        [("is broken", "are broken"), ("keeps beeping", "keep beeping"), ("is missing", "are missing"),
         ("is out of date", "are out of date")],
    ),
}

WORDS = {2: "two", 3: "three", 4: "four", 5: "five", 6: "six"}
MONTHS = ["January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November", "December"]
MONTH_WORDS = {*MONTHS, *(month[:3] for month in MONTHS)}
NAMES = ["Maria", "Tom", "Aisha", "Mr Novak", "Jin", "Olga", "Peter", "Mrs Lund", "Sam", "Ines", "Ravi", "Chloe"]

HELLO = ["Hi,", "Hello,", "Good morning,", "Dear team,", "Hey there,", "Hi all,", "Good evening,"]
HELLO_NEW = ["Hello again,", "Dear sirs,"]
WHO = ["this is {name} from {unit}.", "{name} here, {unit}.", "I live in {unit}.", "I'm writing about {unit}.", "{name} in {unit}."]
WHO_NEW = ["I rent {unit}.", "It's {name}, {unit}."]
WHERE = ["in {unit}", "at {unit}", "here in {unit}"]
UNIT_WORDS = ["flat {}", "apartment {}", "unit {}", "apt {}", "no. {}", "{}"]

HIGH = ["Please hurry!", "It's an emergency.", "Please send someone asap.", "This can't wait.", "Someone could get hurt.",
        "We need help right away.", "It's really urgent.", "It's getting dangerous."]
HIGH_NEW = ["Please come immediately.", "This is very urgent!"]
LOW = ["No rush.", "It's not urgent.", "It can wait.", "Whenever you have time.", "No hurry at all.", "It's only a small thing.",
       "Just when someone is around."]
LOW_NEW = ["There is no hurry.", "It's not urgent at all."]
CHATTER = ["I work until 6 most days.", "My phone is on after 5.", "We have a dog.", "I already told the caretaker.",
           "It started last night.", "It was fine last week.", "The neighbours have the key.", "We've lived here 3 years.",
           "Sorry to bother you.", "It was like that when we moved in.", "I tried to fix it myself."]
CHATTER_NEW = ["Ring twice, the bell is quiet.", "My sister noticed it first.", "We moved in 2 years ago."]
BYE = ["Thanks!", "Thank you.", "Cheers", "Kind regards, {name}", "Many thanks", "Best, {name}", "Thx"]
BYE_NEW = ["Regards", "Thank you very much, {name}"]
VISIT = ["Could someone come on {date}?", "I'm home on {date}.", "{date} would suit me.", "Please come on {date}.",
         "Can you send somebody on {date}?", "The best day is {date}.", "We are in on {date}."]
VISIT_NEW = ["Is {date} possible?", "I could let you in on {date}."]
# Used for one thing, and for several.
BROKEN_ONE = ["the {item} {fault}", "my {item} {fault}", "our {item} {fault}", "the {item} {where} {fault}", "one {item} {fault}"]
BROKEN_SEVERAL = ["{count} {items} {fault}", "{count} of our {items} {fault}", "the {count} {items} {where} {fault}", "{count} {items} {where} {fault}"]
LEAD = ["", "", "", "I think ", "it seems ", "I noticed that ", "unfortunately ", "sadly "]


class Voice:
    """How messages are worded: with the held-out wordings or without."""

    def __init__(self, rng: random.Random, new: bool) -> None:
        self.rng, self.new = rng, new

    def pick(self, known: list[str], kept: list[str]) -> str:
        return self.rng.choice(kept if self.new and self.rng.random() < 0.35 else known)

    def chance(self, probability: float) -> bool:
        return self.rng.random() < probability


def spoken_count(rng: random.Random, count: int) -> str:
    if count == 2 and rng.random() < 0.4:
        return rng.choice(["both", "a couple of", "a pair of"])
    return str(count) if rng.random() < 0.3 else WORDS[count]


def spoken_date(rng: random.Random, month: int, day: int) -> str:
    suffix = {1: "st", 2: "nd", 3: "rd", 21: "st", 22: "nd", 23: "rd"}.get(day, "th")
    name = MONTHS[month - 1]
    form = rng.choice(["{d} {m}", "{m} {d}", "{d}{s} {m}", "{m} {d}{s}", "the {d}{s} of {m}", "{d} {a}", "{a} {d}"])
    return form.format(d=day, m=name, s=suffix, a=name[:3])


def misspell(rng: random.Random, text: str) -> str:
    """One slip of the fingers in a word that the record does not copy."""
    words = ["please", "someone", "working", "would", "thanks", "could", "morning", "loose", "leaking", "noticed", "broken", "properly"]
    present = [w for w in words if w in text.lower()]
    if not present:
        return text
    word = rng.choice(present)
    at = text.lower().index(word) + rng.randrange(1, len(word) - 1)
    slip = rng.choice(["swap", "drop", "double"])
    typed = {"swap": text[at + 1] + text[at], "drop": text[at + 1], "double": text[at] + text[at : at + 2]}[slip]
    return text[:at] + typed + text[at + 2 :]


def sentence(text: str, end: str) -> str:
    return text[0].upper() + text[1:] + end


def unit_code(rng: random.Random) -> str:
    number = rng.choice([rng.randrange(1, 40), rng.randrange(101, 620)])
    return f"{number}{rng.choice('ABCDEF')}" if number < 40 and rng.random() < 0.6 else str(number)


def row(voice: Voice) -> tuple[str, dict]:
    """One message and its record."""
    rng = voice.rng
    category = rng.choice(list(THINGS))
    items, faults = THINGS[category]
    item, fault = rng.choice(items), rng.choice(faults)
    count = 1 if voice.chance(0.6) else rng.choice([2, 2, 2, 3, 3, 4, 5, 6])
    code = None if voice.chance(0.12) else unit_code(rng)
    # A number alone is a flat only after a word that says so.
    words = UNIT_WORDS if code and code[-1].isalpha() else UNIT_WORDS[:-1]
    unit = rng.choice(words).format(code) if code else None
    urgency = rng.choice(["low", "normal", "normal", "high"])
    date = (rng.randrange(1, 13), rng.randrange(1, 29)) if voice.chance(0.65) else None
    name = rng.choice(NAMES)

    told_where = unit is None
    who = ""
    if unit and voice.chance(0.5):
        who, told_where = voice.pick(WHO, WHO_NEW).format(name=name, unit=unit), True
    broken = rng.choice(BROKEN_ONE if count == 1 else BROKEN_SEVERAL)
    where = ""
    if "{where}" in broken and not told_where:
        where, told_where = rng.choice(WHERE).format(unit=unit), True
    broken = broken.format(item=item, items=item + "s" if not item.endswith("s") else item, fault=fault[0 if count == 1 else 1],
                           where=where, count=spoken_count(rng, count) if count > 1 else "")
    broken = " ".join((rng.choice(LEAD) + broken).split())
    broken = broken.replace("the both", "both").replace("the a ", "a ").replace("of of our", "of our")
    if not told_where:
        broken += f" {rng.choice(WHERE).format(unit=unit)}"
    parts = [sentence(broken, "." if voice.chance(0.85) else "!")]

    if date:
        parts.append(sentence(voice.pick(VISIT, VISIT_NEW).format(date=spoken_date(rng, *date)), ""))
    if urgency != "normal":
        parts.append(voice.pick(*((HIGH, HIGH_NEW) if urgency == "high" else (LOW, LOW_NEW))))
    if voice.chance(0.3):
        parts.append(voice.pick(CHATTER, CHATTER_NEW))
    # What is broken mostly comes first, as people write; the rest in any order.
    first, rest = parts[0], parts[1:]
    rng.shuffle(rest)
    rest.insert(0 if voice.chance(0.8) else rng.randrange(len(rest) + 1), first)
    opening = [voice.pick(HELLO, HELLO_NEW)] if voice.chance(0.4) else []
    if who:
        opening.append(who if opening else sentence(who, ""))
    elif opening:
        rest[0] = rest[0] if rest[0].startswith(("I ", "I'm")) or rest[0].split()[0] in MONTH_WORDS else rest[0][0].lower() + rest[0][1:]
    closing = [voice.pick(BYE, BYE_NEW).format(name=name)] if voice.chance(0.3) else []
    text = " ".join(opening + rest + closing)
    if voice.chance(0.15):
        text = misspell(rng, text)
    if voice.chance(0.08):
        text = text.rstrip(".!")
    record = {"category": category, "item": item, "unit": code, "count": count, "urgency": urgency,
              "date": f"{date[0]:02d}-{date[1]:02d}" if date else None}
    return text, record


def as_line(text: str, record: dict) -> str:
    answer = json.dumps(record, ensure_ascii=False, separators=(",", ":"))
    messages = [("system", SYSTEM), ("user", text), ("assistant", answer)]
    return json.dumps({"messages": [{"role": role, "content": content} for role, content in messages]}, ensure_ascii=False) + "\n"


def build() -> dict[str, str]:
    rng = random.Random(SEED)
    seen, pairs, files = set(), {}, {}
    for name, rows, new in [("train.jsonl", TRAIN_ROWS, False), ("heldout.jsonl", HELDOUT_ROWS, True)]:
        voice, lines = Voice(rng, new), []
        while len(lines) < rows:
            text, record = row(voice)
            pair = (record["item"], record["unit"])
            if text in seen or (record["unit"] and pairs.get(pair, name) != name) or len(text) > 170:
                continue
            seen.add(text)
            pairs[pair] = name
            lines.append(as_line(text, record))
        files[name] = "".join(lines)
    return files


def main() -> None:
    for name, content in build().items():
        path = HERE / name
        if "--check" in sys.argv[1:]:
            if not path.exists() or path.read_text(encoding="utf-8") != content:
                sys.exit(f"{path} is not what this script makes; run it without --check")
        else:
            path.write_text(content, encoding="utf-8")
            print(f"{path.name}: {content.count(chr(10))} rows")


if __name__ == "__main__":
    main()
