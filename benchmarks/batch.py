"""What a batch run costs beyond its notebook, and what a second process brings: wall time, on an otherwise idle machine.

    python benchmarks/batch.py             # a few minutes
"""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nbformat

RUNS, ROUNDS = 32, 3
CELLS = ("seed: int = 0\nout: str = 'runs/x'",
         "import json, os\nwith open(f'{out}/partial', 'w') as file:\n    json.dump({'results': {'seed': seed}}, file)\n"
         "os.replace(file.name, f'{out}/results.json')")


def seconds(notebook: Path, out: Path, runs: int, jobs: int) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "gan_influence", "run", str(notebook), "--seeds", f"0:{runs}", "--out", str(out), "--jobs", str(jobs)],
                   check=True, capture_output=True)
    return time.perf_counter() - began


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        notebook = Path(folder) / "01_tiny.ipynb"
        cells = [nbformat.v4.new_code_cell(source) for source in CELLS]
        cells[0].metadata["tags"] = ["parameters"]
        nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}),
                       notebook)
        rounds = []
        for i in range(ROUNDS):
            one, serial, two = (seconds(notebook, Path(folder) / f"{i}-{name}", runs, jobs)
                                for name, runs, jobs in (("one", 1, 1), ("serial", RUNS, 1), ("two", RUNS, 2)))
            rounds.append((two / serial, (serial - one) / (RUNS - 1), one))
            print("round", i + 1, *(f"{value:.2f}" for value in rounds[-1]), flush=True)
    for name, values in zip((f"{RUNS} runs, two processes / one", "seconds for each further run", "seconds for a single run, start-up included"), zip(*rounds)):
        print(f"{statistics.median(values):8.2f}  {name}")


if __name__ == "__main__":
    main()
