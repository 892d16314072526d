"""Reading architectures: what is understood, and what the errors say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from models.arguments import resolve_argument
from models.config import read_model_config
from models.yolo import Model
from tests.golden import ROOT
from tests.unit.models.architectures import ANCHORS, TINY, tiny_mobile, tiny_yolov5, tiny_yolov8
from utils.errors import UserError


def with_row(index: int, row: Any) -> dict[str, Any]:
    """The tiny architecture with one of its rows replaced."""
    cfg = tiny_yolov5()
    rows = cfg["backbone"] + cfg["head"]
    rows[index] = row
    return {**cfg, "backbone": rows[:4], "head": rows[4:]}


@pytest.mark.parametrize(
    ("index", "row", "parts"),
    [
        (2, [-1, 1, "C33", [16]], ["layer 2 (C33)", "unknown block 'C33'", "did you mean"]),
        (2, [3, 1, "C3", [16]], ["layer 2 (C3)", "from 3 points forward"]),
        (2, [2, 1, "C3", [16]], ["layer 2 (C3)", "from 2 points forward"]),
        (2, [-3, 1, "C3", [16]], ["layer 2 (C3)", "from -3 points before the first layer", "lowest here is -2"]),
        (2, [1.5, 1, "C3", [16]], ["layer 2 (C3)", "from must be layer indices"]),
        (2, [[], 1, "C3", [16]], ["layer 2 (C3)", "reads from no layer"]),
        (2, [-1, 0, "C3", [16]], ["layer 2 (C3)", "number of repeats"]),
        (2, [-1, 1, "C3"], ["layer 2", "[from, number, module, args]"]),
        (2, [-1, 1, 7, [16]], ["layer 2", "must be a name", "7"]),
        (2, [-1, 1, "C3", 16], ["layer 2 (C3)", "arguments must be a list"]),
        (2, [-1, 1, "C3", []], ["layer 2 (C3)", "first argument must be the output width"]),
        (2, [-1, 1, "C3", [16, True, 1, 0.5, 9]], ["layer 2 (C3)", "cannot be built", "repeats, shortcut"]),
        (2, [-1, 1, "Conv", [16, 3, 1, None, 1, 1, True, 5]], ["layer 2 (Conv)", "8 arguments, at most 7"]),
        (2, [-1, 1, "Conv", [16, "wide"]], ["layer 2 (Conv)", "unknown name 'wide'"]),
        (2, [-1, 1, "Conv", [16, "__import__('os')"]], ["layer 2 (Conv)", "unknown activation '__import__'"]),
        (2, [-1, 1, "Conv", [16, 3, 1, None, 3]], ["layer 2 (Conv)", "divisible by groups"]),
        (2, [-1, 1, "Conv", [16, 3, 1, None, 1, "nn.Leaky(0.1)"]], ["layer 2 (Conv)", "did you mean 'nn.LeakyReLU'?"]),
        (2, [-1, 1, "SPP", [16, [4, 8]]], ["layer 2 (SPP)", "pooling kernels must be odd and grow"]),
        (
            4,
            [[-1, 2], 1, "Concat", [1]],
            ["layer 4 (Concat)", "does not fit its inputs", "(24, 32, 32)", "(16, 64, 64)"],
        ),
        (2, [-1, 1, "Detect", ["nc", "anchors"]], ["layer 2 (Detect)", "must be the last layer"]),
        (5, [-1, 1, "Conv", [16]], ["layer 5 (Conv)", "last layer must be a detection head", "IAuxDetect"]),
        (5, [[2, 3, 4], 1, "Detect", ["nc", "anchors"]], ["layer 5 (Detect)", "anchors for 2 levels", "reads 3"]),
        (5, [[2, 4], 1, "Detect", ["nc", "anchors", 1]], ["layer 5 (Detect)", "takes [nc, anchors]"]),
        (5, [[2, 4], 1, "Detect", [80, "anchors"]], ["layer 5 (Detect)", "has 80 classes, the model 3", "write nc"]),
        (5, [[2, 4], 1, "Detect", ["nc", "many"]], ["layer 5 (Detect)", "unknown name 'many'"]),
        (5, [[2, 4], 1, "Detect", ["nc", [[1, 2], [3]]]], ["layer 5 (Detect)", "of equal lengths"]),
        (
            5,
            [[2, 3, 4], 1, "IAuxDetect", ["nc", "anchors"]],
            ["(IAuxDetect)", "reads 3 layers", "2 for each"],
        ),
        (5, [[2, 4], 1, "Segment", ["nc", 32, 256]], ["layer 5 (Segment)", "is for segmentation"]),
        (5, [[2, 4], 1, "IKeypoint", ["nc", "anchors", 17]], ["layer 5 (IKeypoint)", "is for keypoints"]),
        (5, [[2, 4], 1, "v10Detect", ["nc"]], ["layer 5 (v10Detect)", "is YOLOv10's"]),
        (5, [[2, 4], 1, "RTDETRDecoder", ["nc"]], ["layer 5 (RTDETRDecoder)", "is RT-DETR's"]),
        (2, [-1, 1, "C3k2", [16]], ["layer 2 (C3k2)", "YOLO11"]),
        (2, [-1, 1, "Wholly", [16]], ["layer 2 (Wholly)", "unknown block 'Wholly'", "docs/architectures.md"]),
        (4, [-1, 1, "nn.ZeroPad2d", [[0, 1, 0, 1]]], ["layer 5 (Detect)", "33 x 33", "whole number of pixels"]),
        (
            4,
            [[-1, 2], 1, "Shortcut", [1]],
            ["layer 4 (Shortcut)", "its inputs (24, 32, 32), (16, 64, 64)"],
        ),
        (4, [[-1, 2], 1, "Conv", [16]], ["layer 4 (Conv)", "does not fit its inputs"]),
        (4, [-1, 1, "Concat", [7]], ["layer 4 (Concat)", "does not fit its inputs"]),
        (2, [-1, 1, "Conv", [-16]], ["layer 2 (Conv)", "must be the output width"]),
        (2, [-1, 1, "Conv", [10**9]], ["layer 2 (Conv)", "must be the output width"]),
        (2, [-1, 1, "Conv", [True]], ["layer 2 (Conv)", "must be the output width"]),
        (2, [-1, 1, "Conv", ["nc/0"]], ["layer 2 (Conv)", "'nc/0'", "zero"]),
        (2, [-1, 1, "Conv", ["'16' * 9"]], ["layer 2 (Conv)", "only numbers can be"]),
        (2, [-1, 1, "Conv", ["anchors * 9"]], ["layer 2 (Conv)", "only numbers can be"]),
        (2, [-1, 1, "Conv", ["9" * 5000]], ["layer 2 (Conv)", "longer than any would be"]),
        (2, [-1, 1, "Conv", ["(" * 150]], ["layer 2 (Conv)", "is not understood"]),
        (2, [-1, 1, "Conv", [16, 3, 1, None, 1, "nn.ReLU(**{'inplace': True})"]], ["layer 2 (Conv)", "each keyword"]),
        (2, [-1, 1, "Conv", [16, 3, 1, None, 1, "nn.LeakyReLU(slope=1)"]], ["layer 2 (Conv)", "unexpected keyword"]),
        (2, [-1, 10**7, "Conv", [16]], ["layer 2 (Conv)", "an integer of 1 to 1000"]),
        (2, [-1, "two", "Conv", [16]], ["layer 2 (Conv)", "number of repeats", "'two'"]),
        (2, [-1, 1, "SwinTransformerBlock", [16, 3, 1]], ["layer 2 (SwinTransformerBlock)", "shared by 3 heads"]),
        (2, [-1, 1, "PSA", [16]], ["layer 2 (PSA)", "at least 64 channels"]),
        (2, [-1, 1, "RepConv_OREPA", [16, 5]], ["layer 2 (RepConv_OREPA)", "OREPA has kernel 3"]),
        (2, [-1, 1, "CBLinear", [[8, 8]]], ["layer 3 (Conv)", "several maps of a CBLinear"]),
        (2, [-1, 1, "nn.Flatten", []], ["layer 2 (nn.Flatten)", "unknown block"]),
    ],
)
def test_broken_row(tmp_path: Path, index: int, row: Any, parts: list[str]) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(yaml.safe_dump(with_row(index, row)))
    with pytest.raises(UserError) as error:
        Model(path)
    message = str(error.value)
    assert "\n" not in message
    for part in ["broken.yaml", *parts]:
        assert part in message


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"head": None}, "key 'head' is missing"),
        ({"nc": None}, "key 'nc' is missing"),
        ({"nc": 0}, "nc is 0"),
        ({"nc": "many"}, "nc is 'many'"),
        ({"ch": "three"}, "ch is 'three'"),
        ({"anchors": [[10, "a"]]}, "anchors must be one list a level"),
        ({"anchors": [[10, -13]]}, "anchors must be one list a level"),
        ({"width_multipel": 0.5}, "did you mean 'width_multiple'?"),
        ({"width_multiple": -1}, "three positive numbers"),
        ({"anchors": None}, "unknown name 'anchors'"),
        ({"anchors": [[1, 2], [3, 4, 5, 6]]}, "of equal lengths"),
        ({"anchors": [[1, 2, 3], [3, 4, 5]]}, "of equal lengths"),
        ({"anchors": 0}, "or their number a level; found 0"),
        ({"backbone": {}}, "'backbone' must be a list"),
        ({"family": "yolov9"}, "unknown family 'yolov9'"),
        ({"activation": "nn.Swishy()"}, "unknown activation 'nn.Swishy'"),
        ({"activation": "nc"}, "unknown name 'nc'"),
        ({"activation": "3"}, "is no activation"),
        ({"activation": "nn.SiLU"}, "is not understood"),
        ({"activation": "__import__('os').system('true')"}, "unknown activation"),
        ({"nc": 10**12}, "a number of classes, 1 to 100000"),
        ({"nc": 2.5}, "nc is 2.5"),
        ({"nc": True}, "nc is True"),
        ({"ch": 0}, "ch is 0"),
        ({"depth_multiple": "deep"}, "three positive numbers"),
        ({"depth_multiple": float("inf")}, "three positive numbers"),
        (
            {"depth_multiple": 999, "backbone": [[-1, 2, "Conv", [8]]] * 5},
            "layer 0 (Conv): 1998 repeats",
        ),
        ({"scales": "n"}, "scales must map a letter"),
        ({"scales": {"n": [1, 1]}, "scale": "n"}, "three positive numbers, found [1, 1]"),
        ({"scales": {"n": 1}, "scale": "n"}, "three positive numbers, found 1"),
        ({"anchors": "many"}, "anchors must be one list a level"),
        ({"head": [7]}, "a row must be [from, number, module, args], found 7"),
        ({"family": ["yolov5"]}, "unknown family"),
        ({"family": "mobile"}, "has no weights, so it reads nn.Conv2d layers; layer 2 is none"),
        ({"family": "yolov8"}, "takes [nc], found ['nc', 'anchors']"),
    ],
)
def test_broken_key(changes: dict[str, Any], part: str) -> None:
    with pytest.raises(UserError, match="architecture") as error:
        Model(tiny_yolov5(**changes))
    assert part in str(error.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"architecture '.*none\.yaml' does not exist"):
        Model(tmp_path / "none.yaml")


def test_arguments() -> None:
    names = {"nc": 20, "na": 3, "anchors": ANCHORS}

    def value(argument: Any) -> Any:
        return resolve_argument(argument, names, "here")

    assert value("na * (nc + 5)") == 75
    assert value("None") is None
    assert value("False") is False
    assert value("nearest") == "nearest"
    assert value("anchors") is ANCHORS
    assert value(["nc", [3, "-2"]]) == [20, [3, -2]]
    leaky = value("nn.LeakyReLU(0.1)")
    assert isinstance(leaky, nn.LeakyReLU)
    assert leaky.negative_slope == 0.1
    assert isinstance(value("torch.nn.ReLU(inplace=True)"), nn.ReLU)


@pytest.mark.parametrize(
    "text", ["open('x')", "nc.__class__", "[x for x in nc]", "lambda: 1", "1 +", "nc ** 9", "'a' 'b"]
)
def test_arguments_are_not_code(text: str) -> None:
    with pytest.raises(UserError, match="here"):
        resolve_argument(text, {"nc": 3}, "here")


@pytest.mark.parametrize("family", TINY)
def test_family_is_recognised(family: str) -> None:
    config = read_model_config(TINY[family]())
    assert config.family == family
    assert config.yaml["family"] == family


def test_deployed_yolov7_is_not_taken_for_yolov5() -> None:
    rows = [[-1, 1, "Conv", [8, 3, 2]], [-1, 1, "MP", []]]
    cfg = {"nc": 3, "anchors": ANCHORS, "backbone": rows, "head": [[[0, 1], 1, "Detect", ["nc", "anchors"]]]}
    assert read_model_config(cfg).family == "yolov7"
    assert read_model_config({**cfg, "family": "yolov5"}).family == "yolov5", "a recorded family is taken as it is"


def test_conv_arguments_of_each_generation() -> None:
    """After the groups: an activation (YOLOv7, YOLOv5 to 6.2), or a dilation and an activation (YOLOv5 7.0, YOLOv8)."""
    for arguments, dilation, activation in (
        ([16, 3, 1, None, 2, "nn.LeakyReLU(0.1)"], (1, 1), nn.LeakyReLU),
        ([16, 3, 1, None, 2, False], (1, 1), nn.Identity),
        ([16, 3, 1, None, 2, 2], (2, 2), nn.SiLU),
        ([16, 3, 1, None, 2, 2, "nn.ReLU()"], (2, 2), nn.ReLU),
        ([16, 3, 1, 1, 2], (1, 1), nn.SiLU),
    ):
        conv = Model(with_row(2, [-1, 1, "Conv", arguments])).model[2]
        assert conv.conv.groups == 2
        assert conv.conv.dilation == dilation
        assert isinstance(conv.act, activation)
    mobile = tiny_mobile(backbone=[[-1, 1, "Conv", [24, 3, 2, 3]]])  # there: kernel, stride, groups, activation
    assert Model(mobile).model[0].conv.groups == 3


def test_activation_of_the_whole_model() -> None:
    model = Model(
        tiny_yolov5(
            activation="nn.LeakyReLU(0.2)", head=with_row(4, [-1, 1, "Conv", [24, 1, 1, None, 1, "nn.ReLU()"]])["head"]
        )
    )
    kinds = {type(m) for m in model.modules() if isinstance(m, nn.SiLU | nn.LeakyReLU | nn.ReLU)}
    assert kinds == {nn.LeakyReLU, nn.ReLU}, "an activation in a row stays"
    assert not any(isinstance(m, nn.SiLU) for m in Model(tiny_mobile()).modules())


def test_multiples() -> None:
    """16 * 0.4 = 6.4 becomes 8, 24 * 0.4 = 9.6 becomes 16; 6 repeats * 0.33 = 1.98 become 2; 1 stays 1."""
    backbone = [
        [-1, 1, "Conv", [8, 3, 2]],
        [-1, 1, "Conv", [16, 3, 2]],
        [-1, 6, "C3", [16]],
        [-1, 1, "Conv", [24, 3, 2]],
    ]
    model = Model(tiny_yolov5(backbone=backbone, depth_multiple=0.33, width_multiple=0.4, nc=4))
    assert model.model[1].conv.out_channels == 8
    assert model.model[3].conv.out_channels == 16
    assert len(model.model[2].m) == 2
    assert len(Model(tiny_yolov5(depth_multiple=0.1)).model[2].m) == 1


def test_width_of_the_predictions_is_not_scaled() -> None:
    """With 3 classes and 2 anchors 2 * (3 + 5) = 16 stays 16, as in upstream's checkpoints; 24 * 0.4 becomes 16."""
    model = Model(tiny_yolov5(width_multiple=0.4))
    assert [model.model[index].conv.out_channels for index in (0, 1, 3)] == [8, 16, 16]
    assert Model(tiny_yolov8(nc=16, width_multiple=0.4)).model[1].conv.out_channels == 16
    assert Model(tiny_yolov8(nc=15, width_multiple=0.4)).model[1].conv.out_channels == 8


def test_repeated_plain_block_continues_at_its_own_width() -> None:
    model = Model(with_row(2, [-1, 3, "Conv", [16, 3]]))
    assert [conv.conv.in_channels for conv in model.model[2]] == [16, 16, 16]
    model = Model(with_row(1, [-1, 2, "Conv", [16, 3, 1]]))
    assert [conv.conv.in_channels for conv in model.model[1]] == [8, 16]


def test_scales(tmp_path: Path) -> None:
    scales = {"n": [1.0, 1.0, 16], "s": [1.0, 2.0, 16]}
    cfg = tiny_yolov8(scales=scales)
    path = tmp_path / "yolov8s.yaml"
    path.write_text(yaml.safe_dump(cfg))
    model = Model(path)
    assert model.yaml["scale"] == "s"
    assert model.model[3].conv.out_channels == 32, "24, at most 16, times 2"
    assert Model(model.yaml).model[3].conv.out_channels == 32
    assert Model(cfg).yaml["scale"] == "n", "without a name the first scale counts"
    with pytest.raises(UserError, match="unknown scale 'q'"):
        Model({**cfg, "scale": "q"})


def test_scale_of_a_file_name(tmp_path: Path) -> None:
    """The letter behind the generation; where that file is missing, the one without the letter is meant."""
    cfg = tiny_yolov8(scales={"n": [1.0, 1.0, 64], "s": [1.0, 2.0, 64]})
    (tmp_path / "yolov8-p2.yaml").write_text(yaml.safe_dump(cfg))
    widths = {
        name: Model(tmp_path / name).model[0].conv.out_channels for name in ("yolov8n-p2.yaml", "yolov8s-p2.yaml")
    }
    assert widths == {"yolov8n-p2.yaml": 8, "yolov8s-p2.yaml": 16}
    assert Model({**cfg, "yaml_file": "some/yolov8s.yaml"}).yaml["scale"] == "s"
    assert Model({**cfg, "scale": None, "yaml_file": "mine.yaml"}).yaml["scale"] == "n"
    with pytest.raises(UserError, match="does not exist"):
        Model(tmp_path / "yolov8n-p6.yaml")


def test_repeats_of_each_kind_of_block() -> None:
    """Blocks that know repeats get them; others stand in a row. 3 * 0.67 = 2.01 is 2."""

    def built(name: str, *arguments: Any, **changes: Any) -> nn.Module:
        return Model({**with_row(2, [-1, 3, name, [64, *arguments]]), "depth_multiple": 0.67, **changes}).model[2]

    inside = ("C3", "C3x", "C3Ghost", "BottleneckCSP", "C2f", "BottleneckCSPB", "ResCSPC", "GhostCSPA", "RepC3")
    for name in inside:
        assert len(built(name).m) == 2, name
    assert len(built("C3TR").m.tr) == 2
    assert len(built("STCSPA").m.blocks) == 2
    for name in ("Bottleneck", "Conv", "CrossConv", "GhostConv", "Res"):
        chain = built(name)
        assert isinstance(chain, nn.Sequential), name
        assert len(chain) == 2, name
    block = Model(with_row(2, [-1, 3, "HGBlock", [8, 16]])).model[2]
    assert [conv.conv.out_channels for conv in block.m] == [8, 8, 8]


def test_plain_arguments_are_not_scaled() -> None:
    """Of rows whose first argument is no width the multiple changes nothing."""
    rows = [[-1, 1, "HGStem", [16, 48]], [-1, 1, "ResNetLayer", [48, 12, 1, False, 2]], [-1, 1, "HGBlock", [10, 30]]]
    model = Model({"nc": 3, "width_multiple": 0.5, "backbone": rows, "head": [[-1, 1, "Detect", ["nc"]]]})
    assert [m.shape[1] for m in model(torch.rand(2, 3, 64, 64), extra_features=[0, 1, 2])[1]] == [48, 48, 30]


def test_number_of_anchors_in_place_of_anchors() -> None:
    """The head has its shape; the values are to be found from the data."""
    model = Model(tiny_yolov5(anchors=4), nc=2)
    assert model.head.anchors_px.shape == (2, 4, 2)
    assert model(torch.rand(1, 3, 32, 32))[0].shape == (1, 4, 8, 8, 7)
    assert Model(model.yaml).yaml["anchors"] == 4


def test_keys_without_a_value() -> None:
    """A yaml's `key:` with nothing behind it is as good as absent."""
    cfg = tiny_yolov8(scales=None, scale=None, activation=None, family=None, anchors=None, ch=3)
    assert Model(cfg).family == "yolov8"


def test_overrides() -> None:
    model = Model(tiny_yolov5(), ch=1, nc=7, anchors=[[1, 2], [30, 40]])
    assert (model.nc, model.names) == (7, ["0", "1", "2", "3", "4", "5", "6"])
    assert model.head.anchors_px.tolist() == [[[1, 2]], [[30, 40]]]
    assert model(torch.zeros(1, 1, 32, 32))[0].shape == (1, 1, 8, 8, 12)
    again = Model(model.yaml)
    assert (again.nc, again.yaml["ch"], again.head.anchors_px.tolist()) == (7, 1, model.head.anchors_px.tolist())
    counted = Model(tiny_yolov5(), anchors=4)
    assert counted.head.na == 4
    assert counted.yaml["anchors"] == 4


def test_anchors_in_the_order_of_the_strides() -> None:
    """The small anchors belong to the small stride, whatever order the yaml lists them in."""
    model = Model(tiny_yolov5(anchors=ANCHORS[::-1]))
    assert model.head.anchors_px.flatten(1).tolist() == ANCHORS


def test_input_is_not_changed() -> None:
    cfg = tiny_yolov5()
    Model(cfg, nc=9)
    assert cfg == tiny_yolov5()


def test_every_shipped_architecture_is_understood() -> None:
    root = ROOT / "cfg"
    paths = sorted(root.rglob("*.yaml"))
    assert len(paths) >= 24
    for path in paths:
        config = read_model_config(path)
        assert config.family == path.parent.name
        assert path.read_text().startswith("#"), f"{path.name} has no comment on top"


def test_pico_widths() -> None:
    """Every map of the smallest student, and every half inside its blocks, is a multiple of 8 wide."""
    model = Model(ROOT / "cfg" / "yolov5" / "yolov5p.yaml")
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.bias is None]
    assert {conv.out_channels % 8 for conv in convolutions} == {0}
    assert sum(p.numel() for p in model.parameters()) == 269917


UPSTREAM_STYLES: dict[str, dict[str, Any]] = {
    "darknet with odd paddings": {
        "backbone": [
            [-1, 1, "Conv", [16, 3, 1]],
            [-1, 1, "nn.MaxPool2d", [2, 2, 0]],
            [-1, 1, "nn.ZeroPad2d", [[0, 1, 0, 1]]],
            [-1, 1, "nn.MaxPool2d", [2, 1, 0]],
            [-1, 2, "Bottleneck", [16, False]],
            [-1, 1, "Conv", [32, [3, 3], [2, 2]]],
        ],
        "head": [[-1, 1, "SPP", [32, [5, 9, 13]]], [[4, 6], 1, "Detect", ["nc", "anchors"]]],
    },
    "transformer and ghost": {
        "backbone": [
            [-1, 1, "Focus", [16, 3]],
            [-1, 1, "GhostConv", [32, 3, 2]],
            [-1, 3, "C3Ghost", [32]],
            [-1, 1, "C3TR", [64]],
        ],
        "head": [[2, 1, "DWConv", [32, 3, 2]], [[3, 4], 1, "Detect", ["nc", "anchors"]]],
    },
    "transposed and summed": {
        "activation": "nn.ReLU()",
        "backbone": [[-1, 1, "Conv", [16, 3, 2]], [-1, 1, "Conv", [16, 3, 2]]],
        "head": [
            [-1, 1, "nn.ConvTranspose2d", ["16", 2, 2, 0]],
            [[-1, 0], 1, "Sum", [2, True]],
            [[3, 1], 1, "Detect", ["nc", "anchors"]],
        ],
    },
    "stem and cross-stage-partial": {
        "backbone": [
            [-1, 1, "Stem", [32]],
            [-1, 3, "ResCSPC", [32]],
            [-1, 1, "Conv", [64, 3, 2, "None", 1, "nn.Mish()"]],
            [-1, 1, "ResXCSPC", [64]],
        ],
        "head": [[-1, 2, "BottleneckCSPB", [64]], [[1, 4], 1, "IDetect", ["nc", "anchors"]]],
    },
}


@pytest.mark.parametrize("style", UPSTREAM_STYLES)
def test_styles_of_upstream_files(style: str) -> None:
    model = Model({"nc": 2, "anchors": 3, "depth_multiple": 0.67, **UPSTREAM_STYLES[style]})
    maps = model(torch.rand(2, 3, 64, 64))
    assert [m.shape[1:3] for m in maps] == [(3, 64 // int(s)) for s in model.stride]
