"""Every option with its default, unit and meaning. Sizes are (width, height) in pixels.

The keys, spelling included, are those of the DT-ST release, so that its yaml files work as they are.
"""

from core.configs.node import Config, OpenConfig
from core.datasets.catalog import check_custom

cfg = Config()

cfg.OUTPUT_DIR = ""  # where a run writes; empty: results/<config name>
cfg.resume = ""  # checkpoint to start from; auto, auto:FILE, a run's folder: go on with it; test: checkpoint or folder
cfg.SEED = 1  # of every random draw of a run

cfg.MODEL = Config()
cfg.MODEL.NAME = "deeplab_resnet101"  # deeplab_resnet18 | 34 | 50 | 101; module:function: a network of your own
cfg.MODEL.NUM_CLASSES = 19
cfg.MODEL.WEIGHTS = ""  # ImageNet weights (torchvision's resnet*.pth), used only without `resume`; empty: random
cfg.MODEL.FREEZE_BN = False  # batch norm as a fixed affine map, in a network of your own, too
cfg.MODEL.DEVICE = "auto"  # auto: CUDA if there is one, else the CPU | cpu | cuda | cuda:1 …
cfg.MODEL.COMPILE = False  # networks compiled by torch when first used; needs a C++ compiler, on a GPU Triton
cfg.MODEL.UNCERTAINTY = 0.0  # probability of DSU at each position of POS (source training only; Li et al., 2022)
cfg.MODEL.POS = ()  # 0 after conv1, 1 after maxpool, 2 … 5 after layer1 … layer4

cfg.DATASETS = Config()
cfg.DATASETS.ROOT = "datasets"  # the folder that holds the data sets' folders
cfg.DATASETS.SOURCE_TRAIN = ""  # <data set>_<split>; in adaptation only its class names are used
cfg.DATASETS.SOURCE_SAMPLING = "auto"  # balanced: images drawn class-balanced | uniform | auto: balanced for gta5
cfg.DATASETS.TARGET_TRAIN = ""  # unlabelled images to adapt to: <data set>_<split>, or folder:PATH
cfg.DATASETS.TEST = ""  # labelled images to evaluate on; empty: no evaluation
cfg.DATASETS.TT = ""  # of the release; means TARGET_TRAIN
cfg.DATASETS.II = ""  # of the release; means TARGET_TRAIN
cfg.DATASETS.TARGET_LIST = ""  # text file naming the target images to use, one a line; empty: all
cfg.DATASETS.CUSTOM = OpenConfig(check_custom)  # own data sets by name, as datasets/README.md describes them

cfg.DATALOADER = Config()
cfg.DATALOADER.NUM_WORKERS = 4  # processes that prepare samples; 0: in the main process
cfg.DATALOADER.CACHE = ""  # folder for decoded training images, which are then mapped into memory; empty: none
cfg.DATALOADER.CACHE_GB = 50.0  # what that folder may come to hold, in 2^30 bytes; the rest is decoded every time
cfg.DATALOADER.SKIP_BAD_IMAGES = 0  # bad image or label files that a training does without; one more, and it stops

cfg.INPUT = Config()
cfg.INPUT.SOURCE_INPUT_SIZE_TRAIN = (1280, 720)
cfg.INPUT.TARGET_INPUT_SIZE_TRAIN = (1024, 512)  # the student's crop
cfg.INPUT.INPUT_SIZE_TEST = (1024, 512)  # the full view: teacher, candidate passes, evaluation
cfg.INPUT.INPUT_SCALES_TRAIN = (1.0, 1.0)  # range of the random rescaling before the crop
cfg.INPUT.HORIZONTAL_FLIP_PROB_TRAIN = 0.0
cfg.INPUT.BRIGHTNESS = 0.0  # colour jitter, torchvision's definition
cfg.INPUT.CONTRAST = 0.0
cfg.INPUT.SATURATION = 0.0
cfg.INPUT.HUE = 0.0
cfg.INPUT.GRAYSCALE_PROB = 0.0  # source training: share of images turned grey
cfg.INPUT.IGNORE_LABEL = 255
cfg.INPUT.PIXEL_MEAN = (0.485, 0.456, 0.406)  # of RGB in 0 … 1
cfg.INPUT.PIXEL_STD = (0.229, 0.224, 0.225)
cfg.INPUT.TO_BGR255 = False  # feed BGR in 0 … 255 (minus mean, over std), for Caffe-style weights

cfg.DTU = Config()
cfg.DTU.DYNAMIC = True  # False: one EMA step every FIX_ITERATION iterations
cfg.DTU.FIX_ITERATION = 12
cfg.DTU.EMA_WEIGHT = 0.99  # share of the teacher that an EMA step keeps
cfg.DTU.PROXY_METRIC = "SND"  # SND | ENT: how the student is scored without labels
cfg.DTU.Query_START = 9  # stored batches before the student is first re-scored
cfg.DTU.Query_STEP = 3  # further batches between two re-scorings
cfg.DTU.META_MAX_UPDATE = 30  # more stored batches than this at a query: the teacher moves without being asked

cfg.TCR = Config()
cfg.TCR.RESAMPLE = True  # False: training images are drawn uniformly
cfg.TCR.PASTE = True  # False: no copy-paste
cfg.TCR.TOPK_CANDIDATE = 0.5  # share of each class's pixels (later: images) below its threshold
cfg.TCR.UPDATE_FREQUENCY = 3000  # iterations between two candidate passes
cfg.TCR.MIX_SAMPLING = "confidence"  # confidence: paste classes ∝ 1 − running confidence | uniform
cfg.TCR.MIX_CLASSES = ()  # names of the classes to paste; empty: the data set's own list
cfg.TCR.PASTE_LAG = 16  # iterations after which the running confidence reaches the loader's workers
cfg.TCR.PASTE_MAX_RATIO = 1.6  # images larger than this times the full view are scaled down before instances are cut
cfg.TCR.MAX_PASS_IMAGES = 0  # bound of a candidate pass: an even, seeded subsample of the images; 0: all

cfg.SOLVER = Config()
cfg.SOLVER.BASE_LR = 0.02  # of the backbone; the classifier has ten times that
cfg.SOLVER.LR_METHOD = "poly"
cfg.SOLVER.LR_POWER = 0.9
cfg.SOLVER.MOMENTUM = 0.9
cfg.SOLVER.WEIGHT_DECAY = 5e-4
cfg.SOLVER.MAX_ITER = 16000  # at which the learning rate would reach 0
cfg.SOLVER.STOP_ITER = 10000  # at which training stops
cfg.SOLVER.BATCH_SIZE = 16  # images per iteration, those of all processes
cfg.SOLVER.ACCUMULATE = 1  # parts that each process makes of its images, one after the other; needs less memory
cfg.SOLVER.CHECKPOINT_PERIOD = 1000  # iterations between two checkpoints (and evaluations)
cfg.SOLVER.KEEP_STATES = 2  # newest states kept, to go on from by `resume auto`
cfg.SOLVER.MAX_BAD_STEPS = 0  # steps with a loss or gradient that is not finite, to be skipped in a run before it stops
cfg.SOLVER.CLIP_GRAD = 0.0  # bound of the gradient's norm over all parameters; 0: none
cfg.SOLVER.CLASS_WEIGHTS = False  # source training: pixels count by 1/√(frequency of their class)
cfg.SOLVER.AMP = "off"  # off | bf16 | fp16 (with a loss scaler): mixed precision of the networks
cfg.SOLVER.TF32 = True  # on a GPU networks may round float32 to TF32 in convolutions; False: true float32
cfg.SOLVER.CUDNN_BENCHMARK = False  # on a GPU cuDNN tries its algorithms out, half a minute a run
cfg.SOLVER.DETERMINISTIC = False  # on a GPU the same bits in every run, for some speed; no CUDNN_BENCHMARK then

cfg.VIS = Config()
cfg.VIS.PERIOD = 200  # iterations between two panels, OUTPUT_DIR/panels/*.png; 0: none
cfg.VIS.TENSORBOARD = True  # write OUTPUT_DIR/tensorboard, if the package is there

cfg.TEST = Config()
cfg.TEST.BATCH_SIZE = 1  # images per forward of evaluation and candidate pass
