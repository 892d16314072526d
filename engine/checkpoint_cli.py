"""`python -m engine.checkpoint inspect FILE` and `convert IN OUT`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from engine.checkpoint import Checkpoint, load_checkpoint, save_checkpoint, to_payload
from utils.cli import CommandParser
from utils.errors import UsageError


def main() -> int:
    """Parses the command line and runs it."""
    parser = CommandParser(
        prog="python -m engine.checkpoint", description="Looks into .pt files, without executing anything in them."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    inspect = commands.add_parser("inspect", help="print what is in a file")
    inspect.add_argument("file")
    convert = commands.add_parser(
        "convert", help="write an upstream file in our form, which loads with weights_only=True"
    )
    convert.add_argument("source", metavar="IN")
    convert.add_argument("target", metavar="OUT")
    convert.add_argument("--half", action="store_true", help="store the weights in half precision")
    arguments = parser.parse_args()
    if arguments.command == "inspect":
        print("\n".join(describe(load_checkpoint(arguments.file, allow_nan=True))))
    else:
        convert_checkpoint(arguments.source, arguments.target, arguments.half)
        print(f"wrote {arguments.target}")
    return 0


def convert_checkpoint(source: str | Path, target: str | Path, half: bool = False) -> None:
    """Writes any checkpoint's weights, the averaged ones where there are such, as a finished run's own file."""
    if Path(source).resolve() == Path(target).resolve():
        raise UsageError(f"{str(source)!r} would be overwritten by its own conversion; name another OUT")
    if not Path(target).resolve().parent.is_dir():
        raise UsageError(f"the folder of {str(target)!r} does not exist; create it")
    save_checkpoint(target, to_payload(load_checkpoint(source), half))


def describe(checkpoint: Checkpoint) -> Iterator[str]:
    """What a checkpoint holds, a line each."""
    tensors = checkpoint.state_dict
    statistics = ("running_mean", "running_var", "num_batches_tracked", "anchors", "anchor_grid")
    parameters = sum(tensor.numel() for key, tensor in tensors.items() if not key.endswith(statistics))
    broken = [key for key, tensor in tensors.items() if tensor.isnan().any()]
    layers = len(checkpoint.yaml.get("backbone") or ()) + len(checkpoint.yaml.get("head") or ())
    names = ", ".join(checkpoint.names[:20]) + (f", ... ({checkpoint.nc} in all)" if checkpoint.nc > 20 else "")
    rows = {
        "file": f"{checkpoint.path} ({checkpoint.path.stat().st_size / 1e6:.1f} MB)",
        "written by": "this software" if checkpoint.kind == "own" else "upstream",
        "family": checkpoint.family or "unknown",
        "head": checkpoint.head,
        "layers": f"{layers}, {parameters:,} parameters in {len(tensors)} tensors",
        "scale": checkpoint.yaml.get("scale"),
        "classes": f"{checkpoint.nc}: {names}",
        "strides": ", ".join(f"{stride:g}" for stride in checkpoint.stride),
        "anchors": checkpoint.anchors and "; ".join(" ".join(f"{v:g}" for v in level) for level in checkpoint.anchors),
        "epoch": checkpoint.epoch if checkpoint.epoch >= 0 else None,
        "best fitness": checkpoint.best_fitness,
        "weights": _weights(checkpoint),
        "NaN": f"{len(broken)} tensors hold NaN, first {broken[0]}" if broken else None,
        "training": ", ".join(sorted(map(str, checkpoint.training))) or None,
        "also in it": ", ".join(sorted(map(str, [*checkpoint.extra, *checkpoint.model_extra]))) or None,
        "hyp": ", ".join(
            f"{key}={value}" for key, value in checkpoint.hyp.items() if not isinstance(value, dict | list)
        ),
        "pickled": ", ".join(sorted(checkpoint.classes)),
    }
    for name, value in rows.items():
        if value not in (None, ""):
            yield f"{name + ':':14}{value}"


def _weights(checkpoint: Checkpoint) -> str:
    if checkpoint.training:
        return "averaged (EMA), and the live ones of a run that can be resumed"
    if checkpoint.ema is not None:
        return "averaged (EMA)" + (", and the live ones" if checkpoint.raw_state_dict is not None else "")
    return "one set"
