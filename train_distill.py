"""Trains a student under a frozen teacher:
`python train_distill.py --teacher-weights teacher.pt --cfg cfg/yolov5/yolov5n.yaml --data data/mine.yaml`.
"""

from __future__ import annotations

from engine.config.flags import add_distillation, given_flags, refuse_beside_resume, training_options, training_parser
from utils.running.cli import run_command


def main() -> None:
    """Parses the flags and distils."""
    parser = training_parser(str(__doc__), project="runs/distill", hyp="hyp/distill.yaml")
    add_distillation(parser)
    namespace = parser.parse_args()
    from engine.config.options import TrainOptions

    options = TrainOptions(**training_options(namespace))
    refuse_beside_resume(namespace)
    if namespace.list_layers:
        from engine.distilling.list_layers import list_layers

        table, problem = list_layers(options)
        print(table)
        if problem:
            raise problem
        return
    if namespace.teacher_assistants:
        from engine.chains.assistants import parse_assistants, run_chain

        run_chain(options, parse_assistants(namespace.teacher_assistants))
        return
    from engine.training.train import run_training

    result = run_training(options, resume=namespace.resume, distil=True, given=given_flags(parser) - {"report"})
    if namespace.report and result.metrics:  # of the first process alone
        from engine.reporting.single import report_run

        report_run(result.folder, options.device)


if __name__ == "__main__":
    run_command(main)
