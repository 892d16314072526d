"""`python -m checkpoints inspect FILE` and `convert IN OUT`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from checkpoints.checkpoint import (
    Checkpoint,
    fitted_model,
    fitted_yaml,
    interpret,
    load_checkpoint,
    save_checkpoint,
    to_payload,
)
from checkpoints.inspect import describe, describe_unknown
from checkpoints.pickled.unpickle import unpickle
from utils.errors import UsageError, UserError
from utils.running.cli import CommandParser, run_command
from utils.text import printable, shown_path


def main() -> int:
    """Parses the command line and runs it."""
    parser = CommandParser(
        prog="python -m checkpoints", description="Looks into .pt files, without executing anything in them."
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
    convert.add_argument("--cfg", help="the architecture yaml of a file that holds weights alone")
    convert.add_argument(
        "--release", help="write a file for the upstream repository instead, of this release: such as 7.0 of YOLOv5"
    )
    arguments = parser.parse_args()
    if arguments.command == "inspect":
        inspect_file(arguments.file)
    else:
        convert_checkpoint(arguments.source, arguments.target, arguments.half, arguments.cfg, arguments.release)
        print(f"wrote {printable(arguments.target)}")
    return 0


def inspect_file(path: str | Path) -> None:
    """Prints what is in a file; of one that is no checkpoint for this software what can be told, and why it is none."""
    unpickled = unpickle(path)
    try:
        checkpoint = interpret(Path(path), unpickled, allow_nan=True)
    except UserError:
        print("\n".join(describe_unknown(Path(path), unpickled)))
        raise
    print("\n".join(describe(checkpoint)))


def convert_checkpoint(
    source: str | Path, target: str | Path, half: bool = False, cfg: str | None = None, release: str | None = None
) -> None:
    """Writes any checkpoint's weights, the averaged ones where there are such, as a finished run's own file.

    Args:
        source: the checkpoint.
        target: the file to write; its folder must exist.
        half: store floating-point weights in half precision.
        cfg: the architecture of a file that holds weights alone; its `names`, where it has such, are the classes'.
        release: write a file for the upstream repository instead, of this release.

    Raises:
        UserError: a file is not understood, or the weights are not those of the architecture, entirely.
    """
    if Path(source).resolve() == Path(target).resolve():
        raise UsageError(f"{shown_path(source)} would be overwritten by its own conversion; name another OUT")
    if not Path(target).resolve().parent.is_dir():
        raise UsageError(f"the folder of {shown_path(target)} does not exist; create it")
    checkpoint = load_checkpoint(source, architecture=cfg is None)
    if checkpoint.kind == "weights":
        checkpoint = _with_architecture(checkpoint, str(cfg))
    elif cfg is not None:
        raise UsageError(f"{shown_path(source)} has an architecture of its own; leave out --cfg")
    else:
        checkpoint = replace(checkpoint, yaml=fitted_yaml(checkpoint))
    if release is None:
        save_checkpoint(target, to_payload(checkpoint, half))
        return
    from checkpoints.upstream.write import save_upstream

    save_upstream(fitted_model(checkpoint), target, hyp=checkpoint.hyp, release=release)


def _with_architecture(weights: Checkpoint, cfg: str) -> Checkpoint:
    """A checkpoint of weights alone, completed by an architecture."""
    from models.yolo import Model
    from utils.names import class_names

    model = Model(cfg)
    names = class_names(model.yaml.get("names"), model.nc)
    complete = replace(
        weights, family=model.family, yaml=model.yaml, nc=model.nc, names=names, stride=model.stride.tolist()
    )
    fitted_model(complete)
    return complete


if __name__ == "__main__":
    run_command(main)
