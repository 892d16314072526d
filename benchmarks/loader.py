"""Speed of the training data set beside that of the `ultralytics` package, on the same images and augmentation.

    python -m benchmarks.loader --data path/to/data.yaml --img-size 320 640

Mosaic 1.0, translate 0.1, scale 0.5, HSV and horizontal flips. Each side runs in a process of its own, on one thread,
in turns: ratios are of neighbouring runs. The package is installed into a virtual environment under ~/.cache for this
purpose alone. With --copies the images appear several times under different names, so that the set is larger than what
either side keeps of it in memory.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from data.config import load_dataset_config
from data.decoding.images import find_images
from data.label_rows import label_path
from utils.running.cli import run_command

ROOT = Path(__file__).resolve().parents[1]
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "yolo-distill"


def ultralytics_python(folder: Path) -> Path:
    """The interpreter of a virtual environment with ultralytics; made on the first call, without another torch."""
    python = folder / "bin" / "python"
    if python.exists() and not subprocess.run([python, "-c", "import ultralytics"], capture_output=True).returncode:
        return python
    print(f"installing ultralytics into {folder}", flush=True)
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    inner = subprocess.check_output([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True)
    Path(inner.strip(), "shared.pth").write_text(sysconfig.get_path("purelib") + "\n")
    subprocess.run([python, "-m", "pip", "install", "--quiet", "ultralytics"], check=True)
    return python


def linked_dataset(data: Path, folder: Path, copies: int) -> Path:
    """A data set of links to the training images of `data`, each under several names; returns its yaml."""
    config = load_dataset_config(data)
    images, _ = find_images(config.train)
    for kind in ("images", "labels"):
        (folder / kind).mkdir()
    for copy in range(copies):
        for number, image in enumerate(images):
            name = f"{copy}_{number}"
            (folder / "images" / f"{name}{Path(image).suffix}").symlink_to(image)
            label = Path(label_path(image))
            if label.exists():
                (folder / "labels" / f"{name}.txt").symlink_to(label)
    yaml = folder / "data.yaml"
    names = json.dumps(list(config.names))
    yaml.write_text(f"path: {folder}\ntrain: images\nval: images\nnc: {config.nc}\nnames: {names}\n")
    return yaml


class Side:
    """A process that makes samples on demand."""

    def __init__(self, python: Path, name: str, data: Path, img_size: int, samples: int) -> None:
        threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        environment = os.environ | threads | {"YOLO_CONFIG_DIR": str(data.parent), "YOLO_VERBOSE": "false"}
        command = [python, "-m", "benchmarks.loader_worker", name, data, img_size, samples]
        self.process = subprocess.Popen(
            [str(part) for part in command], cwd=ROOT, env=environment, text=True, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self._read_until("ready")

    def run(self) -> float:
        """Makes the samples; processor time in seconds."""
        assert self.process.stdin
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        return json.loads(self._read_until("{"))["cpu"]

    def close(self) -> None:
        """Ends the process."""
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()

    def _read_until(self, start: str) -> str:
        assert self.process.stdout
        for line in self.process.stdout:
            if line.startswith(start):
                return line
        raise SystemExit(f"{' '.join(map(str, self.process.args))} ended with {self.process.wait()}")  # type: ignore[arg-type]


def compare(python: Path, data: Path, img_size: int, samples: int, rounds: int) -> tuple[float, float, float]:
    """Samples per second and core of this project and of the package, and the median ratio."""
    ours = Side(Path(sys.executable), "ours", data, img_size, samples)
    theirs = Side(python, "ultralytics", data, img_size, samples)
    for side in (ours, theirs):
        side.run()  # fills its memory of images
    pairs = [(ours.run(), theirs.run()) for _ in range(rounds)]
    ours.close()
    theirs.close()
    ratio = statistics.median(their_time / our_time for our_time, their_time in pairs)
    our_time, their_time = (statistics.median(times) for times in zip(*pairs))
    return samples / our_time, samples / their_time, ratio


def main() -> None:
    """Prints one row for each size and number of copies."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="data yaml with a train split")
    parser.add_argument("--img-size", type=int, nargs="+", default=[320, 640])
    parser.add_argument("--copies", type=int, nargs="+", default=[1, 8], help="how often each image appears")
    parser.add_argument("--samples", type=int, default=400, help="in one run")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each side")
    parser.add_argument("--venv", type=Path, default=CACHE / "ultralytics", help="where ultralytics is, or goes")
    options = parser.parse_args()
    python = ultralytics_python(options.venv)
    print("samples per second and core\n  size  images      ours  ultralytics  ratio")
    for img_size in options.img_size:
        for copies in options.copies:
            with tempfile.TemporaryDirectory() as folder:
                data = linked_dataset(options.data.resolve(), Path(folder), copies)
                images = sum(1 for _ in (data.parent / "images").iterdir())
                ours, theirs, ratio = compare(python, data, img_size, options.samples, options.rounds)
            print(f"{img_size:6d} {images:7d} {ours:9.1f} {theirs:12.1f} {ratio:6.2f}", flush=True)


if __name__ == "__main__":
    run_command(main)
