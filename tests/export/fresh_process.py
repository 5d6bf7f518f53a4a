"""Loads an exported folder in a process of its own and prints what it answers, as JSON.

python fresh_process.py FOLDER FORBIDDEN < texts.json
"""

from __future__ import annotations

import json
import sys

from paredown.export import load


def main() -> None:
    folder, forbidden = sys.argv[1:]
    runner = load(folder, threads=1)
    texts = json.load(sys.stdin)
    answers = runner.predict(texts)
    values = runner.signal(texts).tolist()
    loaded = [name for name in forbidden.split(",") if name in sys.modules]
    json.dump({"answers": answers, "values": values, "loaded": loaded}, sys.stdout)


if __name__ == "__main__":
    main()
