"""What a new user waits for: a fresh clone, `make setup`, `make demo`, `make test`, each timed.

python -m benchmarks.fresh_clone
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from benchmarks.environment import PROJECT, write_result


def main() -> None:
    """Measure and write `results/fresh_clone.json` and `results/demo.json`."""
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder) / "mezzavoce"
        subprocess.run(["git", "clone", "--quiet", str(PROJECT), str(clone)], check=True)
        seconds = {}
        for name, target in (("setup", "setup"), ("demo", "demo"), ("setup_again", "setup"), ("test", "test")):
            start = time.perf_counter()
            subprocess.run(["make", target], cwd=clone, check=True)
            seconds[name] = round(time.perf_counter() - start, 1)
        demo = json.loads((clone / "runs/demo/demo.json").read_text())
        shutil.copyfile(clone / "runs/demo/curves.png", PROJECT / "docs" / "demo-curves.png")
    write_result("fresh_clone", {"seconds": seconds})
    write_result("demo", demo)


if __name__ == "__main__":
    main()
