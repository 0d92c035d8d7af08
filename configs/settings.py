"""Every setting: its default, what it is, its unit and range, and the reason for the default.

A config file (remem.py, quickstart.py, ...) starts from one of these functions, and sets what it
changes. docs/configuration.md is made from this file; a test checks the ranges written here.

Marks after a default:
    [text]     it is in the paper.
    [source]   it is in a work that the paper cites.
    [derived]  it follows from the paper's text.
    [choice]   it is our choice, because our copy of the paper's text does not have the value.
    [free]     it does not make a run differ from the paper's: speed, memory, files, or something
               that the report states anyway.
"""

from ml_collections import ConfigDict, FieldReference


def run() -> ConfigDict:
    """Returns the settings of a ReMem run; the defaults are the paper's, on CIFAR-100."""
    config = ConfigDict()
    config.workflow = "remem"  # The kind of work: "remem", "pretrain", "analysis", "study". [free]
    # Methods to compare, each a row of the results; one of "scratch", "alone", "finetune", "sam",
    # "reweight", "remem". The two baselines and ReMem. "alone" is the student from
    # config.student.init without a teacher. [text]
    config.methods = ("scratch", "finetune", "remem")
    # Seed of all random numbers of a run; at least 0, below 2**32. The paper names none. [free]
    config.seed = 0
    config.log_every = 50  # Steps between two rows of training metrics; at least 1. [free]
    # Steps between two checkpoints, from which a stopped run resumes; at least 1. [free]
    config.save_every = 500
    # Checkpoints that are kept of each stage while it is trained; at least 2, since one of them
    # may be damaged. [free]
    config.keep_checkpoints = 2
    # Restarts of a teacher whose training diverges; each halves the learning rate. At least 0; the
    # report names such teachers. [free]
    config.retries = 0
    # Whether parameters and optimiser states are sharded among the devices, too. [free]
    config.fsdp = False
    # Tracker that gets the metrics; "" (none), "wandb" or "mlflow". Its own environment variables
    # name the project and the server. [free]
    config.track = ""
    config.profile = False  # Whether some steps of each stage are traced into profile/. [free]
    # Whether to print how much device memory the run needs, and end. [free]
    config.plan_only = False
    # Whether all students are evaluated on the test split, and the report also shows the student
    # that is best there. The report states this. [free]
    config.choose_on_test = False
    # Type of activations; one of "auto", "float32", "bfloat16". "auto" is bfloat16 on GPUs and
    # TPUs, float32 on CPUs. [choice]
    config.compute_dtype = "auto"
    config.differs = ()  # Sentences for the report on differences that no setting expresses. [free]

    _data(config)
    _teacher(config)
    _student(config)
    _information(config)
    _flatness(config)
    return config


def _data(config: ConfigDict) -> None:
    config.data = ConfigDict()
    # Data set: a name of remem_jax/data/registry.py; "eurosat_part" or "digits", which are part of
    # the package; "folder", "list" or "arrays" for your own images; or any data set of TFDS, as
    # "tfds:NAME[/CONFIG][:VERSION]". [text]
    config.data.name = "cifar100"
    config.data.path = ""  # Images of "folder", "list" or "arrays": a folder or a file. [free]
    # Folder that relative paths in a list begin at; empty is the folder of the list. [free]
    config.data.root = ""
    config.data.dir = ""  # Folder of TFDS's data sets; empty is TFDS's default. [free]
    # Training split of a "tfds:" data set, such as "train[:80%]"; empty finds it by name. [free]
    config.data.train_split = ""
    # The same for validation; without one, it is held out of train. [free]
    config.data.validation_split = ""
    # The same for the test; without one, it is the validation split that was found, or a fifth of
    # train. [free]
    config.data.test_split = ""
    # Whether a validation split of the data set itself selects models, where it has one; False
    # leaves it out, and holds images out of train, as for other data sets. [choice]
    config.data.official_validation = True
    # Feature of a "tfds:" data set that has the image; empty finds it. [free]
    config.data.image_feature = ""
    # Feature of a "tfds:" data set that has the label; empty finds it. [free]
    config.data.label_feature = ""
    # Feature of a "tfds:" data set whose value images of one group share; empty is none. No group
    # is divided when images are held out of train. [free]
    config.data.group_feature = ""
    # Regular expression that finds the group of an image in its path, relative to config.data.path,
    # or in the value of group_feature; empty is none. A group is what its parentheses match. [free]
    config.data.group_pattern = ""
    # Whether near duplicates among your own training images are held out together. [free]
    config.data.group_duplicates = True
    # Side of the square images that networks get, in pixels; at least 1, and a multiple of the
    # teacher's patch. [text]
    config.data.image_size = 224
    # Side to which larger images are reduced before training, in pixels; at least 1. The report
    # names data sets that were reduced. [free]
    config.data.stored_size = 256
    # Smallest and largest area of a random crop, as fractions of the image; above 0, at most 1.
    # As in vit_jax's fine-tuning. [source]
    config.data.crop_area = (0.05, 1.0)
    # Part of the shorter side that evaluation crops from the centre, as timm's crop_pct; from 0 to
    # 1. 0 resizes the whole image to a square, as in VTAB and vit_jax. [source]
    config.data.evaluation_crop = 0.0
    # Whether training images are flipped horizontally, each with probability 0.5; one of "auto",
    # "True", "False". "auto" is the data set's own rule: not for digits and SVHN. [choice]
    config.data.flip = "auto"
    # Metric that selects models; one of "auto", "top1", "mean_per_class". "auto" is the data set's
    # own: mean_per_class where the paper has it, top1 for your own images. [text]
    config.data.metric = "auto"
    # Class-balanced sampling: an image of a class with n training images is drawn with a
    # probability proportional to n ** -balanced_sampling; from 0 to 1. 0 is every image once per
    # epoch, 1 is all classes equally often. [text]
    config.data.balanced_sampling = 0.0
    # Augmentation policy of training images, after crops and flips; one of "none",
    # "trivial" (TrivialAugment), "rand" (RandAugment). Teacher and students get the same images.
    # [text]
    config.data.augment = "none"
    config.data.augment_operations = 2  # Operations of RandAugment per image; at least 1. [source]
    config.data.augment_magnitude = 9  # Magnitude of RandAugment; from 0 to 30. [source]
    # Colour jitter: largest relative change of brightness, contrast and saturation; at least 0,
    # where 0 is none. [text]
    config.data.color_jitter = 0.0
    config.data.random_erasing = 0.0  # Probability of random erasing; from 0 to 1. [text]
    # Folder of images without labels, which students learn from too, through their teacher alone;
    # empty is none. The paper's text mentions none. [derived]
    config.data.unlabelled = ""
    # Largest share of unlabelled images in the batches of these students; above 0, below 1. Up to
    # it, every image, labelled or not, occurs equally often. The report states the share. [free]
    config.data.unlabelled_share = 0.75
    # Fraction of each class of the training split that is held out for validation, if the data set
    # has no validation split; at least 0, below 1. 0 is no validation at all: the test split
    # selects, which needs choose_on_test. [choice]
    config.data.validation = 0.1
    # Whether the selected teacher and student are also trained anew on train and validation
    # together, with the same settings, and tested beside the others. [free]
    config.data.refit = False
    # Unreadable images that are skipped before a run ends with an error; at least 0. The report
    # names what was skipped. [free]
    config.data.corrupt_limit = 10
    # Device memory for images, in GiB; above 0. Larger data sets are streamed. [free]
    config.data.resident_gib = 16.0
    # Where images are kept; one of "auto", "resident" (on the device), "streamed" (on the host).
    # "auto" streams what exceeds resident_gib. [free]
    config.data.input = "auto"
    config.data.cache = ""  # Folder for decoded images; empty is that of REMEM_CACHE. [free]
    config.data.threads = 0  # Threads that decode; at least 0, where 0 is one per core. [free]
    # Processes that share these threads when images are streamed; at least 0. [free]
    config.data.workers = 0


def _teacher(config: ConfigDict) -> None:
    config.teacher = ConfigDict()
    config.teacher.model = "vit"  # Architecture; one of "vit". [text]
    config.teacher.variant = "B/16"  # Size and patch of the ViT; empty is the checkpoint's. [text]
    # Pretrained weights: a published name or a repository on the Hugging Face Hub such as
    # "timm/vit_small_patch14_reg4_dinov2.lvd142m", which are downloaded, or a file's path
    # (docs/teachers.md). [text]
    config.teacher.init = "augreg:B/16"
    # Steps of fine-tuning at which a teacher is saved; increasing, at least 1. They make up the
    # search over early stopping. [text]
    config.teacher.steps = (500, 700, 1000, 3000, 5000, 7000, 10_000)
    config.teacher.batch_size = 512  # Images per step; at least 1. [choice]
    # Peak of the cosine schedule; above 0. The paper searches 0.005 to 0.5 [text]; the value for a
    # single run is our choice. [choice]
    config.teacher.learning_rate = 0.03
    # Steps of linear warm-up; at least 0, fewer than the steps of training. [choice]
    config.teacher.warmup_steps = 500
    # Optimiser; one of "sgd", "adamw". AdamW needs lower learning rates: docs/teachers.md. [text]
    config.teacher.optimizer = "sgd"
    # Steps at the start that train the head alone, at a constant rate; then all parameters get
    # warm-up and cosine. At least 0, where 0 is none, fewer than the steps after which training
    # ends. Kumar et al. 2022, https://arxiv.org/abs/2202.10054; the paper mentions none. [derived]
    config.teacher.probe_steps = 0
    # Learning rate of these steps; above 0. The default is for SGD, and measured: docs/teachers.md.
    # The report names probe_steps. [free]
    config.teacher.probe_learning_rate = 0.02
    config.teacher.momentum = 0.9  # Momentum of SGD; at least 0, below 1. [choice]
    # Whether it is Nesterov momentum. False, as in vit_jax's fine-tuning. [choice]
    config.teacher.nesterov = False
    config.teacher.betas = (0.9, 0.999)  # Betas of AdamW; from 0 to 0.99999. [choice]
    config.teacher.epsilon = 1e-8  # Epsilon of AdamW; above 0. [choice]
    # Weight decay; at least 0. AdamW's is decoupled, and applies to kernels only. None, as in
    # ViT-22B's fine-tuning. [source]
    config.teacher.weight_decay = 0.0
    # Layer-wise decay of the learning rate: its factor from each block to the one below; above 0,
    # at most 1, where 1 is off. The paper's text mentions none. [derived]
    config.teacher.layer_decay = 1.0
    # Learning rate of all parameters but the head's, as a multiple of the head's; at least 0, where
    # 1 is off. The paper's text mentions one rate. [derived]
    config.teacher.body_rate = 1.0
    # Maximum norm of the gradient; above 0. As in vit_jax's fine-tuning. [choice]
    config.teacher.clip_norm = 1.0
    config.teacher.dropout = 0.0  # Dropout rate; from 0 to 0.99. [choice]
    # Stochastic depth: rate at which the last block is left out in training, rising linearly from 0
    # at the first; from 0 to 0.99. The paper's text mentions none. [derived]
    config.teacher.drop_path = 0.0
    # Decay of an exponential moving average of the weights, which is then evaluated and kept; at
    # least 0, below 1, where 0 is off. The paper's text mentions none. [derived]
    config.teacher.ema = 0.0
    # Whether this decay rises from 0 during training, as 1 - (1 + step)**(-2/3). [derived]
    config.teacher.ema_warmup = False
    # Mixup: both parameters of the Beta distribution; at least 0, where 0 is no Mixup. [text]
    config.teacher.mixup = 0.0
    # CutMix: both parameters of the Beta distribution; at least 0, where 0 is no CutMix. With Mixup
    # too, each batch gets one of them, with equal chances. [text]
    config.teacher.cutmix = 0.0
    # Probability that label smoothing spreads over all classes; from 0 to 1. [text]
    config.teacher.label_smoothing = 0.0
    # Class-balanced loss: beta of the effective number of images, which weights the classes; at
    # least 0, below 1, where 0 weights all alike. Cui et al. use 0.9 to 0.9999. [text]
    config.teacher.class_balance = 0.0
    # Weight of MCMI, a rival of ReMem; at least 0. Its authors use 0.1 to 0.35, the paper none.
    # [text]
    config.teacher.mcmi = 0.0
    # Radius of SAM; at least 0, where 0 is plain SGD. The paper searches 0.5, 0.05, 0.005. [text]
    config.teacher.rho = 0.5
    # Images that share one ascent step of SAM, its m; at least -1, where 0 is the whole batch and
    # -1 each device's share. A run keeps the share it started with; the report states it. [choice]
    config.teacher.ascent_examples = 0
    # Microbatches of a batch, one after another; at least 0, where 0 is as few as fit into memory.
    # [free]
    config.teacher.accumulate = 0
    # alpha of Eq. 2, the weight of every MLP block; above 0, below 2. The paper searches 0.8, 0.9.
    # [text]
    config.teacher.mlp_weight = 0.8
    # beta, the weight of every attention block; above 0, below 2. ReMem re-weights only the MLPs.
    # [text]
    config.teacher.attention_weight = 1.0
    # Number of MLP blocks that are pruned from the top (Section 4); at least 0. [text]
    config.teacher.pruned_mlp = 0
    # Number of attention blocks that are pruned from the top; at least 0. [text]
    config.teacher.pruned_attention = 0
    # Weight of the residual of a re-weighted block; one of "two_minus" (2 - alpha), "plain" (1).
    # [derived]
    config.teacher.residual = "two_minus"
    # Parameters that are trained; one of "full", "lora", "adapter_houlsby", "adapter_pfeiffer",
    # "linear_probe". [text]
    config.teacher.tuning = "full"
    config.teacher.lora = ConfigDict()
    # Layers that get LoRA; one of "query", "key", "value", "out", "Dense_0", "Dense_1", "gate" (of
    # a SwiGLU). [text]
    config.teacher.lora.targets = ("query", "value")
    config.teacher.lora.rank = 32  # Rank of LoRA; at least 1. [text]
    # LoRA's alpha; above 0. The update is scaled by alpha / rank, which is 1. [text]
    config.teacher.lora.scale = 32.0
    config.teacher.adapter = ConfigDict()
    # Width of the model divided by the width of an adapter; at least 1. [text]
    config.teacher.adapter.reduction = 16
    # GELU; one of "", "tanh", "erf", "quick". Empty is that of the checkpoint. [choice]
    config.teacher.gelu = ""
    # What the head takes: [CLS], the mean of the patches, both, or all tokens by attention; one of
    # "", "cls", "gap", "cls_gap", "map". Empty is that of the checkpoint. [choice]
    config.teacher.pool = ""
    # Means of red, green and blue, as fractions of the pixel range, that the teacher subtracts from
    # its images; empty is those of its pretrained weights, or 0.5 if these state none. [choice]
    config.teacher.mean = ()
    # Standard deviations that it then divides by, positive; empty as for the mean. [choice]
    config.teacher.std = ()
    # How position embeddings are resized; one of "vit_jax", "timm", "dinov2". "dinov2" is cubic and
    # antialiased, as in DINOv2 and timm. [choice]
    config.teacher.position_resize = "vit_jax"
    # Activations that the backward pass recomputes to save memory; one of "auto", "nothing",
    # "elementwise", "blocks". "auto" is as little as fits. [free]
    config.teacher.rematerialise = "auto"
    # Whether blocks run in one lax.scan, which compiles faster; False unrolls them. [free]
    config.teacher.scan = True
    # URL or folder to download published weights from; empty is Google's bucket. [free]
    config.teacher.mirror = ""


def _student(config: ConfigDict) -> None:
    config.student = ConfigDict()
    # Architecture: a name of remem_jax/models/students.py. [text]
    config.student.model = "resnet18"
    # Pretrained weights that the student starts from, except in the method "scratch": "imagenet" or
    # a name of the catalogue (docs/students.md), a repository on the Hugging Face Hub such as
    # "timm/resnet18.a1_in1k", or a .safetensors file with the names of timm or torchvision; for
    # a ViT also what config.teacher.init may be; empty is random weights. [text]
    config.student.init = ""
    # Means of red, green and blue, as fractions of the pixel range, that the student subtracts from
    # its images; empty is those of its pretrained weights, or 0.5 without any. [choice]
    config.student.mean = ()
    # Standard deviations that it then divides by, positive; empty as for the mean. [choice]
    config.student.std = ()
    # First layers; one of "imagenet", "small". "small" keeps small images' resolution. [text]
    config.student.stem = "imagenet"
    # Distillation losses: names of remem_jax/train/student_losses.py; each adds a grid of students.
    # [text]
    config.student.losses = ("kd",)
    # Whether students learn from labels besides the teacher's outputs. [text]
    config.student.hard_labels = True
    # Mixup, as config.teacher.mixup; student and teacher get the same mixture. At least 0. [text]
    config.student.mixup = 0.0
    # CutMix, as config.teacher.cutmix; student and teacher get the same images. At least 0. [text]
    config.student.cutmix = 0.0
    # Class-balanced loss of the labels, as config.teacher.class_balance; at least 0, below 1.
    # What it learns from the teacher is not weighted. [text]
    config.student.class_balance = 0.0
    config.student.steps = 20_000  # Steps of training; at least 1. [text]
    config.student.batch_size = 512  # Images per step; at least 1. [choice]
    # Peaks of the cosine schedule for students from random weights; above 0. [text]
    config.student.learning_rates = (0.05, 0.1, 0.5)
    # The same for the method "scratch", whose loss is cross-entropy; above 0. Empty is
    # learning_rates. [choice]
    config.student.scratch_learning_rates = ()
    # The same for students from config.student.init, with a teacher or alone; above 0. Empty takes
    # the usual rates for fine-tuning the network with the optimiser, which docs/students.md lists;
    # those for random weights are so high that they would undo the pretraining. [choice]
    config.student.pretrained_learning_rates = ()
    config.student.temperatures = (1.0, 2.0, 4.0)  # Softmax temperatures of KD; above 0. [text]
    # Weights of the distillation loss, against that of the labels; from 0 to 1. [text]
    config.student.weights = (0.1, 0.5, 0.9)
    # Divides the teacher's logits; above 0, or "calibrated" for the temperature that minimises the
    # loss of each teacher on validation. A value such as 2 flattens the teacher's distribution, a
    # rival of ReMem. [text]
    config.student.flatten = FieldReference(1.0, field_type=object)
    # Added to config.seed: initialisation and dropout of a repeated student; at least 0, below
    # 2**31. The paper names none; the report shows each. [free]
    config.student.seeds = (0,)
    # Students that are trained at once; at least 0, where 0 is as many as fit into memory. [free]
    config.student.group = 0
    # Whether the teacher's outputs are stored on disk for students that follow. [free]
    config.student.store_outputs = False
    # Steps of linear warm-up; at least 0, fewer than the steps of training. [choice]
    config.student.warmup_steps = 500
    # Optimiser; one of "sgd", "adamw". AdamW needs lower learning rates: docs/students.md. [text]
    config.student.optimizer = "sgd"
    config.student.momentum = 0.9  # Momentum of SGD; at least 0, below 1. [choice]
    # Whether it is Nesterov momentum. True, as in most training of such networks. [choice]
    config.student.nesterov = True
    config.student.betas = (0.9, 0.999)  # Betas of AdamW; from 0 to 0.99999. [choice]
    config.student.epsilon = 1e-8  # Epsilon of AdamW; above 0. [choice]
    # Weight decay; at least 0. AdamW's is decoupled, and applies to kernels only. [text]
    config.student.weight_decay = 1e-4
    # Maximum norm of a student's gradient; at least 0, where 0 is no clipping. ViTs need it with
    # SGD. The paper's text mentions none. [derived]
    config.student.clip_norm = 0.0
    # As config.teacher.layer_decay, for students with pretrained weights; above 0, at most 1.
    # [derived]
    config.student.layer_decay = 1.0
    # As config.teacher.body_rate, for students with pretrained weights; at least 0. [derived]
    config.student.body_rate = 1.0
    # Dropout rate: before the head, or in a ViT after its embedding and within its blocks; from 0
    # to 0.99. The paper's text mentions none. [derived]
    config.student.dropout = 0.0
    config.student.drop_path = 0.0  # As config.teacher.drop_path; from 0 to 0.99. [derived]
    # As config.teacher.label_smoothing, in the cross-entropy of every loss; from 0 to 1. [derived]
    config.student.label_smoothing = 0.0
    config.student.ema = 0.0  # As config.teacher.ema; at least 0, below 1. [derived]
    config.student.ema_warmup = False  # As config.teacher.ema_warmup. [derived]
    # Evaluations on validation during training; at least 1, at most the steps. [free]
    config.student.evaluations = 10


def _information(config: ConfigDict) -> None:
    """Sets how decoders measure the information about images in teachers' features."""
    config.information = ConfigDict()
    # Seeds of the decoders, such as (0, 1, 2); at least 0. Each is one training per teacher; empty
    # measures nothing. [free]
    config.information.seeds = ()
    config.information.steps = 2000  # Steps of training; at least the evaluations. [choice]
    config.information.batch_size = 64  # Images per step; at least 2. [choice]
    config.information.learning_rate = 1e-3  # Learning rate of AdamW; above 0. [choice]
    config.information.betas = (0.9, 0.999)  # Betas of AdamW; from 0 to 0.99999. [choice]
    config.information.weight_decay = 1e-4  # Weight decay of AdamW; at least 0. [text]
    config.information.epsilon = 1e-8  # Epsilon of AdamW; above 0. [text]
    # Whether the corners of feature maps stay in place when these are resized. As in InfoPro.
    # [source]
    config.information.align_corners = True
    # Evaluations on validation during training; at least 2, which a slope needs. [free]
    config.information.evaluations = 10
    # Activations of decoders that the backward pass recomputes, as config.teacher.rematerialise;
    # one of "auto", "nothing", "elementwise", "blocks". [free]
    config.information.rematerialise = "auto"
    # Images of validation whose reconstructions are kept; at least 0. [free]
    config.information.pictures = 4

    # InfoNCE with a trained critic: a second estimate, which the paper does not have.
    config.information.info_nce = ConfigDict()
    config.information.info_nce.measured = True  # Whether InfoNCE is estimated, too. [free]
    # Side of the grid to which tokens are averaged; at least 1, a divisor of the tokens' grid.
    # [free]
    config.information.info_nce.grid = 2
    # Side of the grid of mean colours that stands for an image; at least 1, a divisor of the
    # image's side. [free]
    config.information.info_nce.blocks = 8
    # Noise added to features, in standard deviations of each feature; above 0. See
    # remem_jax/analysis/info_nce.py. [free]
    config.information.info_nce.noise = 2.0
    config.information.info_nce.hidden = 256  # Units of a critic's hidden layer; at least 1. [free]
    # Dimensions in which a critic compares features and images; at least 1. [free]
    config.information.info_nce.embedding = 64


def _flatness(config: ConfigDict) -> None:
    """Sets how flat the loss is around the parameters of teachers."""
    config.flatness = ConfigDict()
    # Distance from a teacher's parameters at which its loss on training images is measured, as rho
    # of SAM; at least 0, where 0 measures nothing. [free]
    config.flatness.radius = 0.0
    # Training images, the first of them, without augmentation; at least 0, where 0 is all. [free]
    config.flatness.examples = 0
    config.flatness.batch_size = 64  # Images per pass; at least 1. [free]


def distil() -> ConfigDict:
    """Returns the settings of a run with a time budget; configs/own.py leaves most of them open."""
    config = run()
    config.workflow = "distil"
    config.budget = ConfigDict()
    # Hours that the whole run may take, from its start to the report; above 0. A finished run goes
    # on with more hours. [free]
    config.budget.hours = 1.0
    return config


def analysis() -> ConfigDict:
    """Returns the settings of an analysis of checkpoints; no model is trained on labels."""
    config = run()
    del config.student, config.methods, config.choose_on_test, config.retries, config.plan_only
    del config.flatness
    config.workflow = "analysis"
    config.title = ""  # Title of the report.
    # Analyses to make; one of "information", "expertness", "criticality".
    config.analyses = ("information", "expertness", "criticality")
    # Checkpoints by name, each with a title and the settings of config.teacher that it changes.
    config.models = ConfigDict()
    config.model_order = ()  # Names of config.models in the order of the report.

    config.images = ConfigDict()  # The images that the models are analysed on.
    # Splits; one of "train", "validation", "test". These two are all training images.
    config.images.splits = ("train", "validation")
    config.images.examples = 0  # Number of images, the first of them; at least 0, where 0 is all.
    config.images.batch_size = 64  # Images per forward pass; at least 1.

    config.sensitivity = ConfigDict()  # Settings of decoders to repeat the comparison with.
    # Values of config.information.learning_rate, such as (3e-4, 1e-3, 3e-3).
    config.sensitivity.learning_rates = ()
    # Values of the second of config.information.betas, such as (0.99, 0.999).
    config.sensitivity.second_betas = ()
    # Values of config.information.align_corners, such as (True, False).
    config.sensitivity.align_corners = ()

    config.expertness = ConfigDict()
    # Clusters of images and neurons; 0 or at least 2. 0 is the number of classes. [text]
    config.expertness.clusters = 0
    # Blocks, counted from 0, or from -1 downwards from the top; empty is all.
    config.expertness.layers = ()
    config.expertness.seeds = (0, 1, 2)  # Seeds of the co-clustering; at least 0.
    # Seeds of the null model, which shuffles activations; at least 0.
    config.expertness.null_seeds = (0, 1, 2)
    # Activation below which a neuron counts as inactive; at least 0. See analysis/expertness.py.
    config.expertness.threshold = 0.1

    config.criticality = ConfigDict()
    # Blocks, counted from 0, or from -1 downwards from the top.
    config.criticality.layers = (-1,)
    # Images for each of these blocks; at least 0, where 0 is all of config.images.
    config.criticality.examples = (0,)
    config.criticality.batch_size = 32  # Images per forward pass; at least 1.
    config.criticality.chunk = 16  # Neurons that are removed at once, each alone; at least 1.
    config.criticality.neurons = 6  # Most critical neurons that the report shows; at least 1.
    # Images that each of them affects most, which the report shows; at least 1.
    config.criticality.images = 3
    config.criticality.visualization = ConfigDict()
    # Steps of Adam that optimise an image for a neuron; at least 0, where 0 shows none.
    config.criticality.visualization.steps = 128
    config.criticality.visualization.learning_rate = 0.005  # Learning rate of Adam; above 0.
    # Largest random shift of the image at a step, in pixels; at least 0. The side of a patch.
    config.criticality.visualization.jitter = 16
    config.criticality.visualization.seeds = (0, 1)  # One optimised image for each; at least 0.
    # Images that are optimised at once; at least 1.
    config.criticality.visualization.batch_size = 16
    return config


def study(base: ConfigDict) -> ConfigDict:
    """Returns the settings of a study.

    Args:
        base: Settings of all its runs, except those that rows, columns and the grid change.
    """
    config = ConfigDict()
    config.workflow = "study"  # The kind of work.
    config.title = ""  # Title of the report.
    config.table = 0  # Number of the paper's table that the study reproduces; 0 is none.
    # Sentence for the report on how a mini version differs; empty is the full one.
    config.mini = ""
    config.name = ""  # Name of the study in its storage.
    # Where trials are kept: "sqlite" or "journal" (files of --workdir, for one machine or for
    # several that share it), "journal:/shared/file" or "postgresql://user@host/database".
    config.storage = "sqlite"
    # Where workers that share no folder keep copies of trials, so that others can resume them: a
    # URL that fsspec opens, such as "s3://bucket/study" or "gs://bucket/study"; "" is nowhere.
    config.artifacts = ""
    config.heartbeat_seconds = 20.0  # Seconds between two heartbeats of a worker; above 0.
    # Seconds without a heartbeat after which a worker counts as dead; at least three heartbeats.
    config.grace_seconds = 180.0
    config.attempts = 5  # Crashes after which a trial is given up; at least 1.
    config.only = ""  # Names of rows and columns to run, separated by commas; empty is all.
    # Whether to print what the study costs and how much device memory its runs need, and end.
    config.plan_only = False
    # Whether the weights of all teachers and students are kept, not only the selected ones.
    config.keep_weights = False
    # Seeds of runs; at least 0. Each repeats the whole protocol: data split, teacher, students.
    config.seeds = (0,)
    config.differs = ()  # Sentences for the report on differences that no setting expresses.
    # Row over which the gains of the rows of its group are reported; empty is fine-tuning, or else
    # the first row of the group. Other groups have their own.
    config.baseline = ""
    # Claims that the report decides on, by name: a title (such as "ReMem helps"), and two names of
    # rows: row, which should be better, and baseline.
    config.claims = ConfigDict()
    # Differences within this many points count as none: a claim is refuted if the 95 % interval
    # lies within it; at least 0.
    config.margin = 0.5

    config.search = ConfigDict()
    # How trials are searched; one of "grid" (all of them), "halving" (successive halving).
    config.search.kind = "grid"
    # Seeds whose trials are searched; () is all of config.seeds, each for itself. The others repeat
    # the trial of each cell that is best on validation, as the mean over the searched seeds.
    config.search.seeds = ()
    # Reduction factor of successive halving: one in so many trials goes to the next rung, which has
    # so many times the steps; at least 2.
    config.search.reduction = 4
    # Rungs of successive halving, of which the last has all steps; at least 1.
    config.search.rungs = 3
    # Cost of successive halving, as a fraction of the grid's; from 0 to 1. Fewer trials start if
    # they would exceed it.
    config.search.budget = 0.2
    config.search.near = ConfigDict()  # The grid point where the search starts.
    # Learning rate; a value of the grid. The middle of the paper's range. [choice]
    config.search.near.learning_rate = 0.05
    # Radius of SAM; a value of the grid. The paper's best region has a large one. [text]
    config.search.near.rho = 0.5
    # alpha; a value of the grid. The paper's best region scales MLPs down. [text]
    config.search.near.mlp_weight = 0.8

    # The axes of the grid: settings of config.base, with the values that are searched; () is not
    # searched. Those of config.teacher in the paper's Table 6 have no group; a method may fix some
    # of them. Any other is config.grid.GROUP.NAME, such as config.grid.student.weight_decay.
    config.grid = _axes(base)
    # Learning rates that are searched: the paper's Table 6. [text]
    config.grid.learning_rate = (0.005, 0.007, 0.01, 0.03, 0.05, 0.07, 0.1, 0.3, 0.5)
    config.grid.rho = (0.005, 0.05, 0.5)  # Radii of SAM that are searched: Table 6. [text]
    config.grid.mlp_weight = (0.8, 0.9)  # Values of alpha that are searched: Table 6. [text]
    # Values of beta that are searched. Table 6 lists 0.8 and 0.9, but ReMem re-weights the MLPs
    # alone, so that it is not searched unless you set it, such as to (0.8, 0.9). [text]
    config.grid.attention_weight = ()
    # Rows of the table by name: a title, a method, a group, and the settings that the row changes.
    config.rows = ConfigDict()
    # Columns of the table by name: a title, and the settings that the column changes.
    config.columns = ConfigDict()
    config.row_order = ()  # Names of rows in the order of the table.
    config.column_order = ()  # Names of columns in the order of the table.
    config.base = base  # Settings of all runs, except those that rows, columns and grid change.
    return config


def _axes(settings: ConfigDict) -> ConfigDict:
    """Returns an axis without values for each setting, so that the command line can set it."""
    return ConfigDict(
        {
            name: _axes(value) if isinstance(value, ConfigDict) else ()
            for name, value in settings.items()
        }
    )
