"""Every family on a ResNet: what is imported computes what the family's own network does."""

import math
import re
from argparse import Namespace

import pytest
import torch

from core.datasets.taxonomy import CITYSCAPES_16, CITYSCAPES_19
from core.models.backbone import FeatureExtractor
from core.utils.checkpoints import read_about, read_tensors
from tests.tools.import_model.references import Branches, Caffe, Cma, Mmseg, ResNet, Sac, randomise
from tools.import_model import __main__ as program

ODD = ((41, 55),)  # (height, width); caffe's pooling adds a point along the latter
CAFFE_MEAN = [104.00698793, 116.66876762, 122.67891434]


def below(prefix, state):
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def off(model, reference, sizes=ODD):
    """The largest difference of two networks' logits, of their largest logit; infinite where their shapes differ."""
    worst, reference = 0.0, reference.double()
    for height, width in sizes:
        image = torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(height)).double()
        with torch.no_grad():
            expected, found = reference(image), model(image)
        if expected.shape != found.shape:
            return math.inf
        worst = max(worst, float((expected - found).abs().max() / expected.abs().max()))
    return worst


def mmseg_file(network):
    state = network.state_dict()
    networks = (
        below("model.", state)
        | below("ema_model.", state)
        | below("imnet_model.backbone.", {"x": state["decode_head.aspp_modules.0.conv.bias"]})
    )
    return {"meta": {"CLASSES": ("Road", *CITYSCAPES_19.names[1:])}, "state_dict": networks, "optimizer": {"state": {}}}


CASES = {  # a network, what its program's file holds, the family that is found, its network here, what the log says
    "adaptsegnet": (
        lambda: Caffe("layer6", "layer5", used=2),
        lambda network: network.state_dict(),
        ("adaptsegnet", "deeplab_caffe_resnet101"),
        ["branches 2 and 3 of the head are as they were drawn", "layer5.conv2d_list.0.weight", "1024 channels, auxil"],
    ),
    "adaptsegnet, single": (
        lambda: Caffe("layer5", used=2),
        lambda network: below("Scale.", network.state_dict()),
        ("adaptsegnet", "deeplab_caffe_resnet101"),
        ["its own program does not use"],
    ),
    "advent": (
        lambda: Caffe("layer6", "layer5"),
        lambda network: network.state_dict(),
        ("advent", "deeplab_caffe_resnet101"),
        ["branches 2 and 3 of the head look trained, and are kept", "layer6.conv2d_list is the main one"],
    ),
    "minent, single": (
        lambda: Caffe("layer6"),
        lambda network: below("module.", network.state_dict()),
        ("advent", "deeplab_caffe_resnet101"),
        [],
    ),
    "crots": (  # of Lightning
        lambda: Caffe("layer5", used=2),
        lambda network: {"state_dict": below("net.", network.state_dict()), "hyper_parameters": Namespace(lr=1.0)},
        ("adaptsegnet", "deeplab_caffe_resnet101"),
        [],
    ),
    "sac": (
        Sac,
        lambda network: {"model": below("module.", network.state_dict()), "opt": {}, "score": 0.5, "epoch": 3},
        ("sac", "deeplab_caffe_resnet101"),
        ["slow_net.model.conv1.weight", "running_conf", "--classes synthia16"],
    ),
    "daformer": (
        Mmseg,
        mmseg_file,
        ("daformer_deeplab", "deeplab_v1c_resnet101"),
        ["auxiliary_head.conv_seg.weight", "beside model., the network that is taken", "19 classes, by the file"],
    ),
    "daformer, two branches": (
        lambda: Mmseg(branches=2),
        lambda network: network.state_dict(),
        ("daformer_deeplab", "deeplab_v1c_resnet101"),
        [],
    ),
    "cma": (
        Cma,
        lambda network: {"state_dict": network.state_dict(), "hyper_parameters": {"lr": 1.0}},
        ("cma", "deeplab_v1c_resnet101"),
        ["m_head.conv2d_list.0.weight", "for its training"],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_an_imported_network_gives_the_logits_of_its_own_program(imported, network, case):
    build, wrap, (family, name), words = CASES[case]
    torch.manual_seed(0)
    reference = randomise(build())
    checkpoint, log = imported(wrap(reference))
    about = read_about(checkpoint)
    assert (about["network"], about["family"], about["origin"]) == (name, family, "given.pth")
    assert (about["bn_eps"], tuple(about["classes"]), about["licence"]) == (1e-5, CITYSCAPES_19.names, "unknown")
    assert about["colours"] == CITYSCAPES_19.palette()[:19].tolist()
    caffe_input = name == "deeplab_caffe_resnet101" and family != "sac"
    assert about["bgr255"] == caffe_input
    assert about["mean"] == (CAFFE_MEAN if caffe_input else [0.485, 0.456, 0.406])
    assert about["std"] == ([1.0] * 3 if caffe_input else [0.229, 0.224, 0.225])
    assert about["align_corners"] == (name != "deeplab_v1c_resnet101")
    assert [word for word in words if word not in log] == []
    assert f"tools.predict resume {checkpoint} my_frames" in log
    assert off(network(checkpoint), reference) < 1e-5


def test_the_file_has_the_published_keys_and_is_plain(checkpoint):
    content = read_tensors(checkpoint)
    assert list(content) == ["iteration", "about", "feature_extractor", "classifier"]
    assert [name for name in content["feature_extractor"] if not name.startswith("backbone.")] == []
    parts = [f"conv2d_list.{branch}.{part}" for branch in range(4) for part in ("weight", "bias")]
    assert list(content["classifier"]) == parts


def test_renaming_alone_is_another_network(checkpoint, reference):
    """torchvision's geometry, or batch norms without their epsilon, load these weights, too, and are wrong."""
    content = read_tensors(checkpoint)
    classifier = Branches(2048, 19)
    classifier.load_state_dict(content["classifier"])

    def of(architecture, eps):
        features, state = FeatureExtractor(architecture, freeze_bn=True), content["feature_extractor"]
        features.load_state_dict({key: value - eps * key.endswith("running_var") for key, value in state.items()})
        return torch.nn.Sequential(features, classifier).double()

    sizes = ((41, 57),)  # of which both have the same points
    assert off(of("caffe_resnet101", 0), reference, sizes) < 1e-5
    assert off(of("caffe_resnet101", 1e-5), reference, sizes) > 1e-4
    assert 0.01 < off(of("resnet101", 0), reference, sizes) < math.inf


def test_batch_norms_that_learn_get_their_own_variances_back(checkpoint, network, reference):
    learning = network(checkpoint, freeze=False)
    assert off(learning, reference, [*ODD, (64, 71)]) < 1e-5
    found = learning.feature_extractor.backbone.layer2[0].bn1.running_var
    torch.testing.assert_close(found, reference.layer2[0].bn1.running_var.double(), rtol=0, atol=1e-7)


def test_a_variance_that_lost_more_than_its_epsilon_is_not_below_zero(checkpoint, network, tmp_path):
    content = read_tensors(checkpoint)
    content["feature_extractor"]["backbone.bn1.running_var"][0] = 1e-6
    torch.save(content, tmp_path / "moved.pth")
    norm = network(tmp_path / "moved.pth", freeze=False).feature_extractor.backbone.bn1
    assert float(norm.running_var[0]) == 0
    assert float(norm.running_var[1:].min()) > 0


@pytest.fixture(scope="module")
def doubtful():
    """The state of a network of which one branch of the two that may be unused looks trained, the other as drawn."""
    torch.manual_seed(0)
    return Caffe("layer5", used=3).state_dict()


@pytest.mark.parametrize(
    ("options", "name", "branches"),
    [
        (("adaptsegnet",), "adaptsegnet", 2),
        (("fda",), "advent", 4),
        (("", 2), "adaptsegnet", 2),
        (("", 4), "advent", 4),
    ],
)
def test_branches_are_as_they_are_said_to_be(doubtful, options, name, branches):
    family, state, _ = program.recognise(doubtful, "given.pth", *options)
    found = program.convert(family, state, "given.pth")
    assert family.name == name
    for branch in range(4):
        weight = found.classifier[f"conv2d_list.{branch}.weight"]
        expected = doubtful[f"layer5.conv2d_list.{branch}.weight"]
        assert torch.equal(weight, expected if branch < branches else torch.zeros_like(expected))
    left_out = [key for key, why in found.left_out.items() if "does not use" in why]
    assert len(left_out) == 2 * (4 - branches)
    assert f"--branches {6 - branches}" in found.notes[0]


def test_what_the_weights_do_not_show_is_asked_for(refused, doubtful):
    assert "give --family adaptsegnet or advent" in refused(doubtful)


def test_classes_that_were_never_trained_are_dropped(imported, network, reference):
    found, _ = imported(reference.state_dict(), "--classes", "synthia16", "--family", "bdl")
    kept, about = [CITYSCAPES_19.index(name) for name in CITYSCAPES_16.names], read_about(found)
    assert (about["classes"], about["family"]) == (list(CITYSCAPES_16.names), "bdl")
    image = torch.randn(1, 3, 41, 55).double()
    expected = reference.double()(image)[:, kept]
    torch.testing.assert_close(network(found)(image), expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def test_our_own_format_is_cleaned(imported, network):
    """Of FADA: under DataParallel, with optimisers beside; its batch norms have no epsilon."""
    torch.manual_seed(0)
    backbone, head = randomise(ResNet()), Branches(2048, 16)
    parts = {
        "iteration": 7,
        "feature_extractor": below("module.backbone.", backbone.state_dict()),
        "classifier": below("module.", head.state_dict()),
        "optimizer_fea": {"state": {}},
    }
    checkpoint, log = imported(parts)
    about = read_about(checkpoint)
    assert (about["network"], about["family"], len(about["classes"])) == ("deeplab_resnet101", "ours", 16)
    assert "bn_eps" not in about
    for module in backbone.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eps = 0.0
    reference = torch.nn.Module()
    reference.forward = lambda image: head.double()(backbone.double().stages(image)[1])
    assert off(network(checkpoint), reference) < 1e-5
    assert re.search(r"left out: .*num_batches_tracked.*a counter", log)


def test_of_what_a_checkpoint_of_an_earlier_version_says_that_is_kept_which_can_be(imported):
    torch.manual_seed(0)
    parts = {"feature_extractor": below("backbone.", randomise(ResNet()).state_dict())}
    parts["classifier"] = randomise(Branches(2048, 16)).state_dict()
    said = {"size": [96, 64], "depth": [0, 9], "bands": "x", "mean": "x", "bn_eps": 0.5, "origin": {}, "other": 1}
    about = read_about(imported({**parts, "about": said})[0])
    assert about["size"] == [96, 64]
    assert about["depth"] == [0, 9]
    assert about["mean"] == [0.485, 0.456, 0.406]
    assert about["origin"] == "given.pth"
    assert about.keys().isdisjoint({"bands", "bn_eps", "other"})
    assert "size" not in read_about(imported({**parts, "about": {"size": 5}}, "--overwrite")[0])


def test_what_is_ours_and_says_so_is_not_imported(checkpoint, refused):
    line = refused(read_tensors(checkpoint))
    assert "is a checkpoint of these programs (deeplab_caffe_resnet101): use it as it is" in line
