"""ReMem in minutes on two CPU cores, with nothing to download.

The bundled teacher, ViT Pico/8, on scikit-learn's digits:

    python -m remem_jax.main --config=configs/quickstart.py --workdir=runs/quickstart

It shows every part of a run; its numbers say little about ReMem, which is for strong teachers
and images that are hard to tell apart.
"""

from ml_collections import ConfigDict

from configs import information


def get_config() -> ConfigDict:
    """Returns a ReMem run that two cores do in under five minutes."""
    config = ConfigDict()
    config.workflow = "remem"
    config.methods = ("scratch", "finetune", "remem")  # Also "sam", "reweight".
    config.seed = 0  # Of everything that is drawn.
    config.log_every = 10  # Steps.
    config.save_every = 40  # Steps; also where a stopped run goes on.
    config.keep_checkpoints = 2  # Of each part, while it is trained; one may be damaged.
    config.retries = 0  # Restarts of a teacher that diverges; each halves the learning rate.
    config.fsdp = False  # True divides parameters and momentum among the devices too.
    config.profile = False  # True traces some steps of each part into profile/.
    config.plan_only = False  # True says what the run takes of the device's memory, and ends.
    config.choose_on_test = False  # True measures all students on test, and says which is best.
    config.compute_dtype = "auto"  # "bfloat16" on GPUs and TPUs, "float32" on CPUs; or name one.
    config.differs = ()  # Sentences for the report, of what no setting tells.

    config.data = ConfigDict()
    config.data.name = "digits"
    config.data.path = ""
    config.data.dir = ""
    config.data.image_size = 32  # Pixels; what the bundled teacher was pretrained at.
    config.data.stored_size = 64
    config.data.crop_area = (0.6, 1.0)  # A digit must stay readable.
    config.data.validation = 0.2
    config.data.corrupt_limit = 10  # Unreadable images, which are skipped; more end the run.
    config.data.resident_gib = 1.0
    config.data.input = "auto"  # Or "resident", "streamed".
    config.data.cache = ""  # Folder of what is decoded once; empty is REMEM_CACHE's.
    config.data.threads = 0  # That decode; 0 is one for each core.
    config.data.workers = 0  # Processes that share them where images are streamed.

    config.teacher = ConfigDict()
    config.teacher.model = "vit"
    config.teacher.variant = "Pico/8"  # Of the checkpoint; empty is any.
    config.teacher.init = "bundled:Pico/8"
    config.teacher.steps = (40, 120)  # Each is a teacher.
    config.teacher.batch_size = 64
    config.teacher.learning_rate = 0.05
    config.teacher.warmup_steps = 20
    config.teacher.momentum = 0.9
    config.teacher.weight_decay = 0.0
    config.teacher.clip_norm = 1.0
    config.teacher.dropout = 0.0
    config.teacher.mixup = 0.0  # Both parameters of its Beta distribution; 0 is none.
    config.teacher.label_smoothing = 0.0  # Share of each target that goes to all classes.
    config.teacher.mcmi = 0.0  # Weight of MCMI, a rival of ReMem; its authors take 0.1 to 0.35.
    config.teacher.rho = 0.05  # The paper's 0.5 is for networks 45 times as large.
    # Examples that share an ascent of SAM, its m; 0 is the whole batch, -1 each device's share.
    config.teacher.ascent_examples = 0
    config.teacher.accumulate = 0  # Parts of a batch, one after another; 0 is as few as fit.
    config.teacher.mlp_weight = 0.8
    config.teacher.attention_weight = 1.0
    config.teacher.pruned_mlp = 0  # MLPs left out, from the top (Section 4 of the paper).
    config.teacher.pruned_attention = 0  # The same of attention.
    config.teacher.residual = "two_minus"

    config.teacher.tuning = (
        "full"  # Or "lora", "adapter_houlsby", "adapter_pfeiffer", "linear_probe".
    )
    config.teacher.lora = ConfigDict()
    config.teacher.lora.targets = ("query", "value")
    config.teacher.lora.rank = 32
    config.teacher.lora.scale = 32.0
    config.teacher.adapter = ConfigDict()
    config.teacher.adapter.reduction = 16
    config.teacher.gelu = ""  # "tanh" or "erf"; empty is the checkpoint's.
    config.teacher.position_resize = "vit_jax"  # Or "timm".
    # What is computed again where activations do not fit: "nothing", "elementwise" or "blocks".
    config.teacher.rematerialise = "auto"  # As little as fits.
    config.teacher.scan = True  # Over the blocks; compiles faster. False unrolls them.
    config.teacher.mirror = ""  # Of the published checkpoints; empty is Google's bucket.

    config.student = ConfigDict()
    config.student.model = "resnet18"
    config.student.stem = "imagenet"  # Fast at 32 pixels; "small" is slower and stronger.
    # Or "dist", "dist_masked", "features", "features_cls"; each is as many students more.
    config.student.losses = ("kd",)
    config.student.hard_labels = True  # False: students learn from the teacher alone.
    config.student.mixup = 0.0  # As the teacher's; student and teacher see one mixture.
    config.student.steps = 80
    config.student.batch_size = 64
    config.student.learning_rates = (0.05, 0.1)
    config.student.temperatures = (4.0,)
    config.student.weights = (0.5,)
    config.student.flatten = 1.0  # Divides teachers' logits; above 1 is a flattened teacher.
    config.student.seeds = (0,)  # Repeats each student: initial parameters, dropout.
    config.student.group = 0  # Students that are trained at once; 0 is as many as fit.
    config.student.store_outputs = False  # True keeps teachers' answers for other students.
    config.student.warmup_steps = 10
    config.student.momentum = 0.9
    config.student.weight_decay = 1e-4
    config.student.evaluations = 4

    config.information = information.make(steps=200, evaluations=5)
    return config
