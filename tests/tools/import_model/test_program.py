"""tools.import_model: what it says, what it refuses, and torchvision's own families."""

import pytest
import torch
from torch import nn
from torchvision.models import resnet
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.segmentation import FCN, DeepLabV3
from torchvision.models.segmentation.deeplabv3 import DeepLabHead
from torchvision.models.segmentation.fcn import FCNHead

from core.configs.defaults import cfg as defaults
from core.datasets.taxonomy import CITYSCAPES_16, CITYSCAPES_19
from core.models import backbone, build_model
from core.utils.checkpoints import load_checkpoint, read_about
from core.utils.errors import UserError
from tests.tools.import_model.references import DEPTHS, Mmseg, randomise
from tools.import_model import __main__ as program
from tools.import_model.classes import SETS, choose
from tools.import_model.family import Family, Imported, Taker


def test_the_families_are_listed(capsys):
    assert program.main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:-1]] == [family.name for family in program.FAMILIES]
    assert "fda (as advent)" in lines[-1]
    assert set(program.ALIASES.values()) <= {family.name for family in program.FAMILIES}


@pytest.mark.parametrize(
    ("change", "options", "words"),
    [
        ({}, ["--family", "advnet"], "--family advnet: known are adaptsegnet, advent, "),
        ({}, ["--family", "sac"], "is not of sac, by names and shapes: it holds conv1.weight 64×3×7×7, "),
        ({}, ["--branches", "3"], "invalid choice: 3"),
        ({}, ["--classes", "a,b"], "has 2 classes, but the network 19 (road, sidewalk, building, … (19 in all))"),
        ({}, ["--classes", "road,road"], "names a class twice"),
        ({}, ["--classes", "road"], "the number of its classes must be at least 2 and at most 254, not 1"),
        ({"layer7.weight": torch.ones(2)}, [], "holds what that has not: layer7.weight; nothing was written"),
        ({"layer3.0.bn2.bias": None}, [], "does not fit deeplab_caffe_resnet101: missing: backbone.layer3.0.bn2.bias"),
        ({"layer5.conv2d_list.3.bias": None}, [], "has no branch 3 (layer5.conv2d_list.3.bias)"),
        ({"layer4.0.conv3.weight": None}, [], "is not of any of adaptsegnet, advent, "),
        ({"layer5.conv2d_list.0.bias": torch.tensor(1.0)}, [], "other shapes than"),
        ({"layer2.0.bn1.weight": torch.full((128,), torch.nan)}, [], "is ruined: feature_extractor.backbone.layer2.0"),
        ({"layer6.bottleneck.weight": torch.ones(2)}, ["--family", "ldbe_student"], "its teacher will do"),
    ],
)
def test_refusals_are_one_line(reference, refused, change, options, words):
    state = {name: tensor for name, tensor in (reference.state_dict() | change).items() if tensor is not None}
    assert words in refused(state, *options)


def test_networks_of_masks_are_refused(refused):
    state = {f"network.{name}": torch.ones(2, 2) for name in ("q.weight", "mask_head.0.weight", "class_head.weight")}
    assert "has no logits of pixels" in refused(state)


def test_branches_are_of_one_head_alone(refused):
    state = {f"network.{name}": torch.ones(2, 2) for name in ("q.weight", "mask_head.0.weight", "class_head.weight")}
    assert "--branches is of DeepLabV2's head, which masks has not" in refused(state, "--branches", "2")


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["given.pth"], "the checkpoint (-o FILE) to write is missing"),
        (["-o", "out.pth"], "the file to import is missing"),
        (["given.pth", "-o", "there.pth"], "already there: there.pth; choose another -o, or give --overwrite"),
        (["there.pth", "-o", "there.pth", "--overwrite"], "-o there.pth is the file to import"),
        (["given.pth", "-o", "out.pth"], "given.pth does not exist"),
    ],
)
def test_bad_words_are_one_line(tmp_path, monkeypatch, capsys, argv, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.pth").write_text("precious")
    assert program.main(argv) == 1
    assert words in capsys.readouterr().err
    assert (tmp_path / "there.pth").read_text() == "precious"


def test_a_tensor_that_a_family_forgets_is_an_error():
    def forgetful(state):
        return Imported("deeplab_resnet18", 2, {"a": state["a"]}, {}, {"b": "known"}, {})

    family = Family("some", "some", lambda state: True, forgetful)
    state = dict.fromkeys("abc", torch.ones(1))
    with pytest.raises(UserError, match="holds what that has not: c;"):
        program.convert(family, state, "given.pth")
    del state["c"]
    assert program.convert(family, state, "given.pth").network == "deeplab_resnet18"


def test_a_taker_remembers_what_it_gave():
    taker = Taker(dict.fromkeys("abcd", torch.ones(1)))
    assert "a" in taker
    assert [*taker] == [*"abcd"]
    assert taker.forgotten({"d": "why"}) == [*"abc"]
    assert taker.get("b") is taker["b"]
    assert taker.forgotten({"d": "why"}) == ["a", "c"]


@pytest.mark.parametrize(
    ("arguments", "names", "outputs"),
    [
        (("", 19), CITYSCAPES_19.names, ()),
        (("", 16), CITYSCAPES_16.names, ()),
        (("", 21), SETS["voc"].names, ()),
        (("", 2, ("a", "b")), ("a", "b"), ()),
        (("", 19, ("a", "b")), CITYSCAPES_19.names, ()),  # of which the file says too few
        (("x, y", 2, ("a", "b")), ("x", "y"), ()),
        (("", 2, ("Traffic light", "light")), ("Traffic light", "light"), ()),
        (("c,a", 3, ("a", "b", "c")), ("c", "a"), (2, 0)),
        (("car,road", 19), ("car", "road"), (13, 0)),
        (
            ("", 19, [f"traffic {name}" if name in ("light", "sign") else name for name in CITYSCAPES_19.names]),
            CITYSCAPES_19.names,
            (),
        ),
    ],
)
def test_names_of_classes(arguments, names, outputs):
    found = choose(*arguments)
    assert (found.names, found.outputs, len(found.colours)) == (tuple(names), outputs, len(names))


@pytest.mark.parametrize("names", [("a", "a"), ("a", ""), ("a", "b\x1b[31m")])
def test_names_that_no_program_takes_are_asked_for(names):
    with pytest.raises(UserError, match=r"names of its classes must be a list of different names, not .*: --classes "):
        choose("", 2, names)
    with pytest.raises(UserError, match=r"the number of its classes must be .* 254, not 300"):
        choose(",".join(map(str, range(300))), 300, names)


def test_colours_of_classes():
    assert choose("", 2, ("a", "b"), [(1, 2, 3), (4, 5, 6)]).colours == [[1, 2, 3], [4, 5, 6]]
    voc = choose("", 21).colours
    assert [voc[0], voc[1], voc[15]] == [[0, 0, 0], [128, 0, 0], [192, 128, 128]]
    with pytest.raises(UserError, match="it gives 7 classes: name them by --classes"):
        choose("", 7)


def test_an_imported_model_of_few_classes_keeps_the_names_and_colours_of_its_file(imported):
    torch.manual_seed(0)
    network = randomise(Mmseg())
    for module in network.decode_head.aspp_modules:
        module.conv = nn.Conv2d(2048, 2, 3)
    state = {name: tensor for name, tensor in network.state_dict().items() if not name.startswith("auxiliary")}
    meta = {"classes": ["field", "wood"], "palette": [[1, 2, 3], [4, 5, 6]]}
    checkpoint, log = imported({"meta": {"dataset_meta": meta}, "state_dict": state})
    about = read_about(checkpoint)
    assert (about["classes"], about["colours"]) == (["field", "wood"], [[1, 2, 3], [4, 5, 6]])
    assert "synthia16" not in log


@pytest.mark.parametrize(("kind", "whole", "head"), [("deeplabv3", DeepLabV3, DeepLabHead), ("fcn", FCN, FCNHead)])
def test_torchvisions_networks(imported, monkeypatch, kind, whole, head):
    pytest.importorskip("core.models.torchvision_networks")
    monkeypatch.setitem(backbone.ARCHITECTURES, "resnet50", (resnet.Bottleneck, DEPTHS))
    torch.manual_seed(0)
    network = resnet.ResNet(resnet.Bottleneck, [*DEPTHS], replace_stride_with_dilation=[False, True, True])
    features = IntermediateLayerGetter(network, {"layer4": "out", "layer3": "aux"})
    theirs = randomise(whole(features, head(2048, 21), FCNHead(1024, 21)))
    checkpoint, log = imported(theirs.state_dict())
    about = read_about(checkpoint)
    assert (about["network"], about["align_corners"]) == (f"{kind}_resnet50", False)
    assert (about["classes"], "bn_eps" in about) == (list(SETS["voc"].names), False)
    assert "aux_classifier.0.weight" in log
    options = {"MODEL.NAME": about["network"], "MODEL.NUM_CLASSES": 21, "MODEL.FREEZE_BN": True}
    ours = build_model(defaults.changed(options))
    load_checkpoint(ours, checkpoint)
    image = torch.randn(1, 3, 41, 55).double()
    with torch.no_grad():
        inner = theirs.double().backbone(image)["out"]
        expected, found = theirs.classifier(inner), ours.double().eval()(image)
    assert float((found - expected).abs().max()) < 1e-5 * float(expected.abs().max())
