#!/usr/bin/env python3
"""Makes chats about one document: each row has the whole document in its system message, and one question about it.

    python3 make_document_rows.py FILE     the same bytes every time

It is what a bot that knows a manual is tuned on, and where computing a common beginning once matters most.
"""
import json
import pathlib
import random
import sys

SEED, BERTHS = 7, 16
SHIPS = ["Aurora", "Brigand", "Cormorant", "Dunlin", "Eider", "Fulmar", "Gannet", "Heron", "Ibis", "Jackdaw", "Kittiwake", "Lapwing",
         "Merlin", "Nightjar", "Osprey", "Petrel"]
CARGOES = ["timber", "salt", "grain", "cement", "fish meal", "scrap iron", "potash", "wood pulp"]
PORTS = ["Riga", "Bergen", "Cork", "Bremen", "Vigo", "Hull", "Gdansk", "Ghent"]
ASKED = {"cargo": "What does the {ship} carry?", "port": "Where does the {ship} come from?", "berth": "At which berth does the {ship} lie?"}


def rows():
    rng = random.Random(SEED)
    register = [{"ship": ship, "cargo": rng.choice(CARGOES), "port": rng.choice(PORTS), "berth": str(berth)}
                for berth, ship in enumerate(rng.sample(SHIPS, BERTHS), 1)]
    lines = [f"Berth {entry['berth']}: the {entry['ship']} from {entry['port']}, with {entry['cargo']}." for entry in register]
    document = "You answer from the harbour's register.\n" + "\n".join(lines)
    for entry in register:
        for field, question in ASKED.items():
            yield {"messages": [{"role": "system", "content": document},
                                {"role": "user", "content": question.format(**entry)},
                                {"role": "assistant", "content": entry[field]}]}


def write(path):
    """Gives how many there are."""
    lines = [json.dumps(row) + "\n" for row in rows()]
    path.write_text("".join(lines))
    return len(lines)


if __name__ == "__main__":
    write(pathlib.Path(sys.argv[1]))
