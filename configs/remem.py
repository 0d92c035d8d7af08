"""ReMem in the paper's setting: ViT-B/16 teacher, ResNet-18 student, 224 pixels.

Names of data sets are those of remem_jax/data/registry.py, "folder", "list" or "arrays". Options
follow after commas, any setting can be changed on the command line:

    python -m remem_jax.main --config=configs/remem.py:flowers102 --workdir=runs/flowers \
        --config.teacher.init=weights/B_16.npz --config.teacher.rho=0.05
    python -m remem_jax.main --config=configs/remem.py:folder,variant=Ti/16 --workdir=runs/mine \
        --config.data.path=my_images --config.teacher.init=weights/Ti_16.npz

Standing of each number: [text] stands in the paper, [source] in the work that it cites, [choice]
is ours, because the paper's value is lost.
"""

from ml_collections import ConfigDict

from configs import information

LOSSES = {
    "kd": {},
    "dist": {
        "losses": ("dist",),
        "learning_rates": (0.5, 0.7, 1.0),  # [text]
        "weights": (1.0,),  # beta and gamma [text].
        "temperatures": (1.0,),  # Of DIST's authors [source].
    },
    "patient": {"mixup": 0.8, "steps": 200_000},  # [text]
    "features": {"losses": ("features",)},  # Not in the paper; the grid is KD's [choice].
}
NOT_IN_AUGREG = ("H/14", "L/32", "R50+B/16")  # Published before it, on ImageNet-21k.


def get_config(spec: str = "cifar100") -> ConfigDict:
    """Returns the paper's settings for a data set.

    Args:
        spec: Name of the data set, then options: "flowers102,variant=S/16,student=resnet18".
            The option loss is "kd", "dist", "patient" (KD with Mixup over ten times the steps),
            or "features".
    """
    dataset, *pairs = spec.split(",")
    options = {"variant": "B/16", "student": "resnet18", "loss": "kd"}
    for name, _, value in (pair.partition("=") for pair in pairs):
        if name not in options:
            raise ValueError(
                f"configs/remem.py has no option {name!r}; known: {', '.join(options)}."
            )
        options[name] = value

    config = ConfigDict()
    config.workflow = "remem"
    config.methods = ("scratch", "finetune", "remem")  # Also "sam", "reweight".
    config.seed = 0  # Of everything that is drawn.
    config.log_every = 50  # Steps.
    config.save_every = 500  # Steps; also where a stopped run goes on.
    config.keep_checkpoints = 2  # Of each part, while it is trained; one may be damaged.
    config.retries = 0  # Restarts of a teacher that diverges; each halves the learning rate.
    config.fsdp = False  # True divides parameters and momentum among the devices too.
    config.profile = False  # True traces some steps of each part into profile/.
    config.plan_only = False  # True says what the run takes of the device's memory, and ends.
    config.choose_on_test = False  # True measures all students on test, and says which is best.
    config.compute_dtype = "auto"  # "bfloat16" on GPUs and TPUs, "float32" on CPUs; or name one.
    config.differs = ()  # Sentences for the report, of what no setting tells.

    config.data = ConfigDict()
    config.data.name = dataset
    config.data.path = ""  # For "folder", "list" and "arrays".
    config.data.dir = ""  # Of TFDS; empty is its own default.
    config.data.image_size = 224  # Pixels, square [text].
    config.data.stored_size = 256  # Larger images are stored as squares of this size.
    config.data.crop_area = (0.05, 1.0)  # Of vit_jax's fine-tuning [source].
    config.data.validation = 0.1  # Of each class of train [choice].
    config.data.corrupt_limit = 10  # Unreadable images, which are skipped; more end the run.
    config.data.resident_gib = 16.0  # Of pixels on the device; what takes more is streamed.
    config.data.input = "auto"  # Or "resident", "streamed".
    config.data.cache = ""  # Folder of what is decoded once; empty is REMEM_CACHE's.
    config.data.threads = 0  # That decode; 0 is one for each core.
    config.data.workers = 0  # Processes that share them where images are streamed.

    config.teacher = ConfigDict()
    config.teacher.model = "vit"
    config.teacher.variant = options["variant"]  # Of the checkpoint; empty is any.
    collection = "i21k" if options["variant"] in NOT_IN_AUGREG else "augreg"
    config.teacher.init = f"{collection}:{options['variant']}"  # Downloaded; or a file's path.
    config.teacher.steps = (500, 700, 1000, 3000, 5000, 7000, 10_000)  # Each a teacher [text].
    config.teacher.batch_size = 512  # [choice]
    config.teacher.learning_rate = 0.03  # Of 0.005 to 0.5 [text]; which one is [choice].
    config.teacher.warmup_steps = 500  # [choice]
    config.teacher.momentum = 0.9  # [choice]
    config.teacher.weight_decay = 0.0  # As ViT-22B's fine-tuning [source].
    config.teacher.clip_norm = 1.0  # As vit_jax's fine-tuning [choice].
    config.teacher.dropout = 0.0  # [choice]
    config.teacher.mixup = 0.0  # Both parameters of its Beta distribution; 0 is none.
    config.teacher.label_smoothing = 0.0  # Share of each target that goes to all classes.
    config.teacher.mcmi = 0.0  # Weight of MCMI, a rival of ReMem; its authors take 0.1 to 0.35.
    config.teacher.rho = 0.5  # Of 0.5, 0.05, 0.005 [text].
    # Examples that share an ascent of SAM, its m; 0 is the whole batch, -1 each device's share.
    config.teacher.ascent_examples = 0
    config.teacher.accumulate = 0  # Parts of a batch, one after another; 0 is as few as fit.
    config.teacher.mlp_weight = 0.8  # alpha, of 0.8, 0.9 [text].
    config.teacher.attention_weight = 1.0  # beta; ReMem re-weights the MLPs alone [text].
    config.teacher.pruned_mlp = 0  # MLPs left out, from the top (Section 4 of the paper).
    config.teacher.pruned_attention = 0  # The same of attention.
    config.teacher.residual = "two_minus"  # [derived] from the text; or "plain".

    config.teacher.tuning = (
        "full"  # Or "lora", "adapter_houlsby", "adapter_pfeiffer", "linear_probe".
    )
    config.teacher.lora = ConfigDict()
    config.teacher.lora.targets = ("query", "value")  # [text]
    config.teacher.lora.rank = 32  # [text]
    config.teacher.lora.scale = 32.0  # alpha in the terms of LoRA; alpha / rank is 1 [text].
    config.teacher.adapter = ConfigDict()
    config.teacher.adapter.reduction = 16  # [text]
    config.teacher.gelu = ""  # "tanh" or "erf"; empty is the checkpoint's.
    config.teacher.position_resize = "vit_jax"  # Or "timm".
    # What is computed again where activations do not fit: "nothing", "elementwise" or "blocks".
    config.teacher.rematerialise = "auto"  # As little as fits.
    config.teacher.scan = True  # Over the blocks; compiles faster. False unrolls them.
    config.teacher.mirror = ""  # Of the published checkpoints; empty is Google's bucket.

    config.student = ConfigDict()
    config.student.model = options["student"]
    config.student.stem = "imagenet"
    # Or "dist", "dist_masked", "features", "features_cls"; each is as many students more.
    config.student.losses = ("kd",)
    config.student.hard_labels = True  # False: students learn from the teacher alone.
    config.student.mixup = 0.0  # As the teacher's; student and teacher see one mixture.
    config.student.steps = 20_000  # [text]
    config.student.batch_size = 512  # [choice]
    config.student.learning_rates = (0.05, 0.1, 0.5)  # [text]
    config.student.temperatures = (1.0, 2.0, 4.0)  # [text]
    config.student.weights = (0.1, 0.5, 0.9)  # [text]
    config.student.flatten = 1.0  # Divides teachers' logits; above 1 is a flattened teacher.
    config.student.seeds = (0,)  # Repeats each student: initial parameters, dropout.
    config.student.group = 0  # Students that are trained at once; 0 is as many as fit.
    config.student.store_outputs = False  # True keeps teachers' answers for other students.
    config.student.warmup_steps = 500  # [choice]
    config.student.momentum = 0.9  # Nesterov's [choice].
    config.student.weight_decay = 1e-4  # [text]
    config.student.evaluations = 10  # On validation, on the way.
    config.information = information.make()
    if options["loss"] not in LOSSES:
        raise ValueError(f"loss must be one of {', '.join(LOSSES)}; got {options['loss']!r}.")
    config.student.update(LOSSES[options["loss"]])
    return config
