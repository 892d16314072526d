"""Trains a detector: `python train.py --cfg cfg/yolov5/yolov5n.yaml --data data/synthetic.yaml`."""

from __future__ import annotations

from engine.config.flags import add_inheriting, given_flags, training_options, training_parser
from utils.running.cli import run_command


def main() -> None:
    """Parses the flags and trains."""
    parser = training_parser(str(__doc__), project="runs/train", hyp="the plain ones of the model's family")
    add_inheriting(parser)
    namespace = parser.parse_args()
    from engine.config.options import TrainOptions
    from engine.training.train import run_training

    options = TrainOptions(**training_options(namespace))
    result = run_training(options, resume=namespace.resume, given=given_flags(parser) - {"report"})
    if namespace.report and result.metrics:  # of the first process alone
        from engine.reporting.single import report_run

        report_run(result.folder, options.device)


if __name__ == "__main__":
    run_command(main)
