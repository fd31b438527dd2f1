"""Takes chosen files out of a wheel: `unwheel.py WHEEL DEST PREFIX=TARGET…`.

A member whose name starts with PREFIX is written to DEST/TARGET followed by the rest of its name. Every PREFIX must
match something. Python's zipfile checks each member's CRC, so a truncated or damaged wheel ends in an error here.
"""

import os
import shutil
import sys
import zipfile


def main(wheel: str, dest: str, rules: list[str]) -> None:
    wanted = [rule.split("=", 1) for rule in rules]
    found = {prefix: 0 for prefix, _ in wanted}
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.infolist():
            rule = next(((p, t) for p, t in wanted if member.filename.startswith(p)), None)
            if rule is None or member.is_dir():
                continue
            prefix, target = rule
            path = os.path.join(dest, target + member.filename[len(prefix):])
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with archive.open(member) as source, open(path, "wb") as sink:
                shutil.copyfileobj(source, sink, 1 << 20)
            found[prefix] += 1
    missing = [prefix for prefix, count in found.items() if count == 0]
    if missing:
        sys.exit(f"{os.path.basename(wheel)} does not hold {', '.join(missing)}")


if __name__ == "__main__":
    try:
        main(sys.argv[1], sys.argv[2], sys.argv[3:])
    except (zipfile.BadZipFile, OSError, EOFError) as error:
        sys.exit(f"{sys.argv[1]}: {error}")
