"""Every option with its default, the values it may have, and its meaning. Sizes are (width, height) in pixels.

The keys, spelling included, are those of the DT-ST release, so that its yaml files work as they are. An option that is
`free` may have another value where a run goes on: it does not change what is computed, but for a device's rounding.
In one that is a `path`, `~` and `$NAME` are what a shell makes of them.
"""

from typing import Any, NamedTuple

from core.configs import rules
from core.configs.node import Config, OpenConfig
from core.configs.rules import Rule, above, at_least, one_of, within


class Facts(NamedTuple):
    """What is known of an option beside its default."""

    rule: Rule | None
    free: bool
    path: bool


cfg = Config()
OPTIONS: dict[str, Facts] = {}  # by full name


def option(key: str, default: Any, rule: Rule | None = None, free: bool = False, path: bool = False) -> None:
    """Add an option to :data:`cfg` and :data:`OPTIONS`; its values have the type of its default."""
    section, _, name = key.rpartition(".")
    node = cfg.setdefault(section, Config()) if section else cfg
    node[name] = default
    OPTIONS[key] = Facts(rule, free, path)


option("OUTPUT_DIR", "", free=True, path=True)  # where a run writes; empty: results/<config name>
# checkpoint to start from; random: none; auto, auto:FILE, a run's folder: go on; in evaluation a checkpoint or a folder
option("resume", "", free=True, path=True)
option("SEED", 1, within(0, 2**63 - 1))  # of every random draw of a run

option("MODEL.NAME", "deeplab_resnet101", rules.NETWORK)  # docs/networks.md; module:function: a network of your own
option("MODEL.NUM_CLASSES", 19, within(2, 254))
# names of its classes, and [red, green, blue] of each, where no data set of the config has them; empty: a checkpoint's
option("MODEL.CLASSES", (), rules.NAMES)
option("MODEL.CLASS_COLOURS", (), rules.COLOURS)
# the output's channel of every class, in their order, counted from 0; empty: all as they are (not of deeplab networks)
option("MODEL.CLASSES_OUT", (), rules.CHANNELS)
# NAME: VALUE pairs of a network by name (docs/networks.md), or of your own, any that its function knows
option("MODEL.ARGS", OpenConfig())
# pretrained weights of the backbone, in its library's format, used without `resume`; empty: random
option("MODEL.WEIGHTS", "", free=True, path=True)
# how logits are resized, wherever they are: True: the outer points lie in the image's corners, as in DeepLabV2; False:
# each in the middle of its square, as in networks that were trained so
option("MODEL.ALIGN_CORNERS", True)
option("MODEL.FREEZE_BN", False)  # batch norm as a fixed affine map, in every network
option("MODEL.FREEZE_BN_PARAMETERS", True)  # with it; False: only statistics are fixed, weight and bias learn
# auto: CUDA if there is one, else the CPU | cpu | cuda | cuda:1 … | mps: a Mac's GPU, predictions only, untried
option("MODEL.DEVICE", "auto", free=True)
option("MODEL.COMPILE", False, free=True)  # networks compiled by torch; needs a C++ compiler, on a GPU Triton
option("MODEL.UNCERTAINTY", 0.0, within(0, 1))  # probability of DSU (Li et al., 2022) at each of POS; source training
option("MODEL.POS", (), rules.POSITIONS)  # 0 after conv1, 1 after maxpool, 2 … 5 after layer1 … layer4

option("DATASETS.ROOT", "datasets", free=True, path=True)  # the folder that holds the data sets' folders
option("DATASETS.SOURCE_TRAIN", "")  # <data set>_<split>; in adaptation only its class names are used
# balanced: images drawn class-balanced | uniform | auto: balanced for gta5
option("DATASETS.SOURCE_SAMPLING", "auto", one_of("auto", "balanced", "uniform"))
# unlabelled images to adapt to: <data set>_<split>, folder:PATH (or folder:A,folder:B, …), video:PATH
option("DATASETS.TARGET_TRAIN", "", path=True)
option("DATASETS.TEST", "", path=True)  # labelled images to evaluate on; empty: no evaluation
option("DATASETS.TT", "", free=True)  # of the release; means TARGET_TRAIN
option("DATASETS.II", "", free=True)  # of the release; means TARGET_TRAIN
# text file of the images to use, which must stay the same; empty: all
option("DATASETS.TARGET_LIST", "", free=True, path=True)
option("DATASETS.CUSTOM", OpenConfig())  # own data sets by name, as docs/own_data.md describes them

option("VIDEO.EVERY", 0, at_least(0))  # of `video:PATH` every so manieth frame; 0: such that there are at most 500
option("VIDEO.MIN_CHANGE", 1.0, at_least(0))  # grey levels, on average, by which a frame differs from the last one kept
# takes the frames, which later runs use again; empty: DATASETS.ROOT/frames
option("VIDEO.FOLDER", "", free=True, path=True)

option("DATALOADER.NUM_WORKERS", 4, at_least(0), free=True)  # processes that prepare samples; 0: in the main process
# folder for decoded training images, then mapped into memory; empty: none
option("DATALOADER.CACHE", "", free=True, path=True)
option("DATALOADER.CACHE_GB", 50.0, at_least(0), free=True)  # what it may hold, in 2^30 bytes; the rest is decoded
option("DATALOADER.SKIP_BAD_IMAGES", 0, at_least(0), free=True)  # bad image or label files to do without

option("INPUT.SOURCE_INPUT_SIZE_TRAIN", (1280, 720), rules.SIZE)
option("INPUT.TARGET_INPUT_SIZE_TRAIN", (1024, 512), rules.SIZE)  # the student's crop
option("INPUT.INPUT_SIZE_TEST", (1024, 512), rules.SIZE)  # the full view: teacher, candidate passes, evaluation
option("INPUT.INPUT_SCALES_TRAIN", (1.0, 1.0), rules.SCALES)  # range of the random rescaling before the crop
option("INPUT.HORIZONTAL_FLIP_PROB_TRAIN", 0.0, within(0, 1))
option("INPUT.BRIGHTNESS", 0.0, at_least(0))  # colour jitter, torchvision's definition
option("INPUT.CONTRAST", 0.0, at_least(0))
option("INPUT.SATURATION", 0.0, at_least(0))
option("INPUT.HUE", 0.0, within(0, 0.5))
option("INPUT.GRAYSCALE_PROB", 0.0, within(0, 1))  # source training: share of images turned grey
# of images with 16 bits, what becomes 0 … 255: auto: the range of the set | 8 | 10 | 12 | 14 | 16 bits from 0 on |
# percentile: 1 to 99 % of the set's pixels; images of 8 bits are as they are
option("INPUT.DEPTH", "auto", one_of("auto", "8", "10", "12", "14", "16", "percentile"))
option("INPUT.DEPTH_RANGE", (), rules.SPAN)  # (lowest, highest) value instead; a run that finds it keeps it here
# picture of the images' size, 0 where they always show the same (the own bonnet, say): no label, no paste, no score
option("INPUT.MASK", "", path=True)
option("INPUT.MARGINS", (), rules.MARGINS)  # the same as (left, top, right, bottom), pixels at the images' own size
option("INPUT.IGNORE_LABEL", 255, rules.IGNORE_LABEL)
# subtracted, and divided by, in the order of the channels that the network gets: R, G, B of 0 … 1; with TO_BGR255 B, G,
# R of 0 … 255
option("INPUT.PIXEL_MEAN", (0.485, 0.456, 0.406), rules.COLOUR)
option("INPUT.PIXEL_STD", (0.229, 0.224, 0.225), rules.DIVISORS)
option("INPUT.TO_BGR255", False)  # feed BGR in 0 … 255, for Caffe-style weights

option("DTU.DYNAMIC", True)  # False: one EMA step every FIX_ITERATION iterations
option("DTU.FIX_ITERATION", 12, at_least(1))
option("DTU.EMA_WEIGHT", 0.99, within(0, 1))  # share of the teacher that an EMA step keeps
option("DTU.PROXY_METRIC", "SND", one_of("SND", "ENT"))  # how the student is scored without labels
option("DTU.Query_START", 9, at_least(1))  # stored batches before the student is first re-scored
option("DTU.Query_STEP", 3, at_least(1))  # further batches between two re-scorings
option("DTU.META_MAX_UPDATE", 30, at_least(1))  # more stored batches at a query: the teacher moves unasked

option("DTU.ANCHOR", 0.0, within(0, 1))  # share by which every move also pulls the teacher to where the run started

option("TCR.RESAMPLE", True)  # False: training images are drawn uniformly
option("TCR.PASTE", True)  # False: no copy-paste
option("TCR.TOPK_CANDIDATE", 0.5, within(0, 1))  # share of each class's pixels (later: images) below its threshold
option("TCR.UPDATE_FREQUENCY", 3000, at_least(2))  # iterations between two candidate passes
option("TCR.MIX_SAMPLING", "confidence", one_of("confidence", "uniform"))  # paste classes: ∝ 1 − running confidence
option("TCR.MIX_CLASSES", ())  # names of the classes to paste; empty: the data set's own list
option("TCR.PASTE_LAG", 16, at_least(1))  # iterations after which the running confidence reaches the loader's workers
option("TCR.PASTE_MAX_RATIO", 1.6, above(0))  # × the full view: larger images are scaled down to it before they are cut
option("TCR.MAX_PASS_IMAGES", 0, at_least(0))  # bound of a candidate pass: an even, seeded subsample; 0: all images

option("ADAPT.AUTO", False)  # the run finds rate, length, pull, paste classes, batch norm where not given
option("ADAPT.NORM_MIX", (), rules.SHARES)  # target's share in the running statistics: one number, or one a layer
option("ADAPT.TEACHER_LOOKS", (), rules.LOOKS)  # of the teacher, too: mirrored, larger, larger_mirrored
option("ADAPT.CLASS_WEIGHTS", (), rules.WEIGHTS)  # of every class's pseudo-labels in the loss; empty: all 1

option("SOLVER.AUTO", False)  # source training: the run finds size, batch, rate and length where not given
option("SOLVER.OPTIMIZER", "SGD", one_of("SGD", "AdamW"))  # AdamW: what transformers want; norms do not decay by it
option("SOLVER.BASE_LR", 0.02, above(0))  # of the backbone
option("SOLVER.HEAD_FACTOR", 10.0, above(0))  # × BASE_LR: the classifier's rate
option("SOLVER.LAYER_DECAY", 1.0, rules.SHARE)  # × the rate of the next layer, from the head down to the stem
option("SOLVER.WARMUP", 0, at_least(0))  # first iterations, in which the rate grows from next to 0 to the schedule's
option("SOLVER.LR_METHOD", "poly", one_of("poly"))
option("SOLVER.LR_POWER", 0.9, at_least(0))
option("SOLVER.MOMENTUM", 0.9, at_least(0))  # of AdamW, the first beta; the second is 0.999
option("SOLVER.WEIGHT_DECAY", 5e-4, at_least(0))
option("SOLVER.MAX_ITER", 16000, at_least(1))  # at which the learning rate reaches 0: not below STOP_ITER
option("SOLVER.STOP_ITER", 10000, at_least(1), free=True)  # at which training stops; of a run that goes on, only later
option("SOLVER.BATCH_SIZE", 16, at_least(1))  # images per iteration, those of all processes
option("SOLVER.ACCUMULATE", 1, at_least(1), free=True)  # parts that a process makes of its images, to need less memory
option("SOLVER.CHECKPOINT_PERIOD", 1000, at_least(1), free=True)  # iterations between two checkpoints (and evaluations)
option("SOLVER.KEEP_STATES", 2, at_least(1), free=True)  # newest states kept, to go on from by `resume auto`
option("SOLVER.MAX_BAD_STEPS", 0, at_least(0), free=True)  # steps without a finite loss and gradient to be skipped
option("SOLVER.CLIP_GRAD", 0.0, at_least(0))  # bound of the gradient's norm over all parameters; 0: none
option("SOLVER.CLASS_WEIGHTS", False)  # source training: pixels count by 1/√(frequency of their class)
option("SOLVER.AMP", "off", one_of("off", "bf16", "fp16"))  # mixed precision of the networks; fp16 with a loss scaler
option("SOLVER.TF32", True, free=True)  # on a GPU convolutions may round float32 to TF32; False: true float32
option("SOLVER.CUDNN_BENCHMARK", False, free=True)  # on a GPU cuDNN tries its algorithms out, half a minute a run
option("SOLVER.DETERMINISTIC", False, free=True)  # on a GPU the same bits in every run; no CUDNN_BENCHMARK then

option("VIS.PERIOD", 200, at_least(0), free=True)  # iterations between two panels, OUTPUT_DIR/panels/*.png; 0: none
option("VIS.TENSORBOARD", True, free=True)  # write OUTPUT_DIR/tensorboard, if the package is there
option("VIS.COLOURS", "clear", one_of("clear", "data_set", "colour_blind"), free=True)  # of classes, in pictures
option("VIS.NAMES", True, free=True)  # write the classes' names upon large regions of overlays

option("TEST.BATCH_SIZE", 1, at_least(1))  # images, or windows, per forward of evaluation and candidate pass
# evaluation, candidate passes, predictions: the network sees images at their own size, so much at a time; empty: whole
# images, resized to INPUT_SIZE_TEST
option("TEST.WINDOW", (), rules.WINDOW)
option("TEST.STRIDE", (), rules.STEP)  # from one window to the next; empty: two thirds of the window
