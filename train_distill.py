"""Trains a student under a frozen teacher:
`python train_distill.py --teacher-weights teacher.pt --cfg cfg/yolov5/yolov5n.yaml --hyp hyp/distill.fgd.yaml`.
"""

from __future__ import annotations

from engine.arguments import add_distillation, training_options, training_parser
from utils.cli import run_command


def main() -> None:
    """Parses the flags and distils."""
    parser = training_parser(str(__doc__), hyp="hyp/distill.fgd.yaml", project="runs/distill")
    add_distillation(parser)
    namespace = parser.parse_args()
    from engine.config import TrainOptions
    from engine.train import run_training

    run_training(TrainOptions(**training_options(namespace)), resume=namespace.resume, distil=True)


if __name__ == "__main__":
    run_command(main)
