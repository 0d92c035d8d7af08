"""timm's form of ViTs: names, layouts, and .safetensors files.

Neither timm nor torch is needed. timm's networks differ from ours in the GELU, which is by erf
(`exact_gelu`), and in epsilons in the stems of hybrids: 1e-5 rather than 1e-6 in group norms, and
1e-8 added to a kernel's variance rather than 1e-5 to its standard deviation.

Source: github.com/huggingface/pytorch-image-models, `vision_transformer.py` and
`vision_transformer_hybrid.py`.
"""

import math
import os
import pathlib
import re
from collections.abc import Collection, Iterator, Mapping

import ml_dtypes
import numpy as np
import safetensors
from absl import logging
from safetensors import numpy as safetensors_numpy

from remem_jax.checks import SettingError, require
from remem_jax.models import vit
from remem_jax.storage import files
from remem_jax.weights import matching, names

HEAD_FEATURES = 64  # Features per attention head, except in the largest ViTs.
PICKLES = (".pth", ".pt", ".bin", ".ckpt", ".tar")
# What torch's wrappers add to names: anywhere in a name, and as a prefix of all names.
_INSIDE = re.compile(r"(?<![^.])(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_BEFORE = re.compile(r"(?:(?:module|model|net|state_dict)\.)*")
# safetensors asks NumPy for types by name; ml_dtypes registers bfloat16.
_REALS = {"BF16": ml_dtypes.bfloat16, "F16": np.float16, "F32": np.float32, "F64": np.float64}
_INTEGERS = ("BOOL", "U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64")
_WHOLE = {"cls": "cls_token", names.POSITION: "pos_embed", "MAPHead_0/probe": "attn_pool.latent"}
_NORMS = {"LayerNorm_0": "norm1", "LayerNorm_2": "norm2"}
_MLP = {"Dense_0": "mlp.fc1", "Dense_1": "mlp.fc2"}
# Modules that some of timm's ViTs have and ours do not, and the end of the message.
_REFUSED = {
    "head_dist.": "is a distilled DeiT, with a second token and head: take a plain one",
    "dist_token": "is a distilled DeiT, with a second token and head: take a plain one",
    "fc_norm.": "normalises after its pooling, our ViTs before it: take another one",
}


def to_timm(params: Mapping[str, np.ndarray], *, grid: int = 0) -> dict[str, np.ndarray]:
    """Converts our arrays to timm's state dict.

    The model is timm's `VisionTransformer` with `global_pool="token"` for the pool "cls";
    `global_pool="avg", class_token=False, fc_norm=False` for "gap"; `global_pool="map",
    class_token=False` for "map". A re-weighted or pruned ViT is folded first
    (`weights.folding`).

    Args:
        params: Flat parameters, by slash-joined name.
        grid: Tokens per side, for writing computed positions ("sincos2d"), because timm has only
            learned ones.

    Raises:
        SettingError: If timm has no such model. It dropped the layer `pre_logits`: its loaders
            skip the arrays silently, and the outputs differ.
    """
    if "pre_logits/kernel" in params:
        raise SettingError(
            "timm has no pre_logits layer; save this ViT as big_vision, or fine-tune it without "
            "(representation=0)."
        )
    params = dict(params)
    if names.POSITION not in params:
        require(grid > 0, "timm has no computed positions: give grid, the tokens on a side.")
        params[names.POSITION] = vit.sincos2d(grid, params[names.EMBEDDING].shape[-1])
    blocks = _numbers(params, r"Transformer/encoderblock_(\d+)/")
    units = [(b - 1, u - 1) for b, u in _numbers(params, r"block(\d+)/unit(\d+)/")]
    converted = {timm: params.pop(ours) for ours, timm in _WHOLE.items() if ours in params}
    for ours, timm in _attentions(blocks):
        converted |= _attention_to_timm(params, ours, timm)
    for ours, timm in _modules(blocks, units):
        for leaf, other in (("kernel", "weight"), ("scale", "weight"), ("bias", "bias")):
            if f"{ours}/{leaf}" in params:
                array = params.pop(f"{ours}/{leaf}")
                axes = (3, 2, 0, 1) if array.ndim == 4 else range(array.ndim)[::-1]
                converted[f"{timm}.{other}"] = array.transpose(axes)
    require(not params, f"timm's ViT has no parameter for {matching.listed(sorted(params))}.")
    return {name: np.asarray(array, order="C") for name, array in converted.items()}


def from_timm(arrays: Mapping[str, np.ndarray], *, heads: int = 0) -> dict[str, np.ndarray]:
    """Converts timm's state dict to flat arrays under our names.

    If there is a [CLS] without a position (`no_embed_class`), its position is zeros. Missing arrays
    are not reported here, but by the comparison with a model.

    Args:
        arrays: Arrays by timm's names. `pre_logits.fc`, of releases up to 0.5, is `pre_logits`.
        heads: Number of attention heads, which the arrays do not determine; 0 for `usual_heads`.

    Raises:
        SettingError: If the model is not supported, or an array has no plausible shape.
    """
    arrays = dict(arrays)
    for start, reason in _REFUSED.items():
        if any(name.startswith(start) for name in arrays):
            raise SettingError(f"The timm checkpoint {reason} ({start.rstrip('.')}).")
    blocks = _numbers(arrays, r"blocks\.(\d+)\.")
    units = _numbers(arrays, r"patch_embed\.backbone\.stages\.(\d+)\.blocks\.(\d+)\.")
    converted = {ours: arrays.pop(timm) for ours, timm in _WHOLE.items() if timm in arrays}
    for ours, timm in _attentions(blocks):
        converted |= _attention_from_timm(arrays, ours, timm, heads)
    for ours, timm in _modules(blocks, units):
        if f"{timm}.weight" in arrays:
            weight = arrays.pop(f"{timm}.weight")
            axes = (2, 3, 1, 0) if weight.ndim == 4 else range(weight.ndim)[::-1]
            leaf = "scale" if weight.ndim == 1 else "kernel"
            converted[f"{ours}/{leaf}"] = weight.transpose(axes)
        if f"{timm}.bias" in arrays:
            converted[f"{ours}/bias"] = arrays.pop(f"{timm}.bias")
    if arrays:
        raise SettingError(
            "The timm checkpoint is not a supported ViT; there is no parameter for "
            f"{matching.listed(sorted(arrays))}."
        )
    converted = _with_cls_position(converted)
    return {name: np.asarray(array, order="C") for name, array in converted.items()}


def usual_heads(features: int) -> int:
    """Returns the number of heads of the variant with as many features, or one per 64 features."""
    known = {size.features: size.heads for size in vit.VARIANTS.values()}
    return known.get(features, features // HEAD_FEATURES)


def read(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Reads the arrays of a .safetensors file; floating-point arrays are read as float32.

    Raises:
        SettingError: If the file is missing, broken, of another format, or has a type that NumPy
            does not have.
    """
    source = os.fspath(path)
    refuse_pickle(path)
    if not pathlib.Path(path).is_file():
        raise SettingError(f"There is no checkpoint {source}; set config.teacher.init.")
    try:
        with safetensors.safe_open(path, framework="np") as file:
            types = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
            for name, dtype in types.items():
                known = dtype in _REALS or dtype in _INTEGERS
                require(known, f"{name} in {source} holds {dtype}, which NumPy does not have.")
            return {name: _real(file.get_tensor(name), types[name]) for name in types}
    except (safetensors.SafetensorError, OSError) as error:
        raise SettingError(f"{source} is not a whole .safetensors file: {error}.") from error


def refuse_pickle(path: str | os.PathLike[str]) -> None:
    """Raises `SettingError` if a file has the suffix of a pickle."""
    if pathlib.Path(path).suffix in PICKLES:
        raise SettingError(
            f"{os.fspath(path)} is a pickle, which may run code, and is not loaded: convert it "
            "where you trust it, by safetensors.torch.save_file(torch.load(FILE, "
            "weights_only=True), 'FILE.safetensors')."
        )


def unwrapped(
    arrays: Mapping[str, np.ndarray], source: str
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Removes the prefixes that training code adds to names.

    `torch.compile`, data-parallel training and training frameworks prefix names with `_orig_mod.`,
    `module.`, `model.` or `state_dict.`. If most names have such a prefix, the others are not part
    of the model: averages of weights, or the state of an optimiser.

    Returns:
        The arrays of the model, and the names of the others.

    Raises:
        SettingError: If the file has several such models.
    """
    plain = {_INSIDE.sub("", name): array for name, array in arrays.items()}
    groups: dict[str, list[str]] = {}
    for name in plain:
        groups.setdefault(_BEFORE.match(name)[0], []).append(name)  # pyright: ignore[reportOptionalSubscript]
    start, members = max(groups.items(), key=lambda group: len(group[1]), default=("", []))
    if not start:
        members = list(plain)
    elif len(groups.keys() - {""}) > 1:
        raise SettingError(
            f"{source} holds several models, whose names begin with "
            f"{', '.join(sorted(groups.keys() - {''}))}: save one of them alone."
        )
    if start or plain.keys() != arrays.keys():
        logging.info("%s: names are read without %s.", source, start or "_orig_mod. and the like")
    ignored = tuple(name for name in plain if name not in set(members))
    return {name.removeprefix(start): plain[name] for name in members}, ignored


def save(
    path: str | os.PathLike[str],
    arrays: Mapping[str, np.ndarray],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes a .safetensors file, atomically.

    Args:
        path: The file.
        arrays: Arrays by name.
        metadata: Texts for the header. {"format": "pt"} is added, because some readers refuse a
            file without it.
    """
    # safetensors writes the memory of an array in its order, ignoring strides.
    stored = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    header = {"format": "pt", **(metadata or {})}
    with files.replacing(pathlib.Path(path)) as file:
        file.write(safetensors_numpy.save(stored, header))


def _real(array: np.ndarray, dtype: str) -> np.ndarray:
    with np.errstate(over="ignore"):  # Numbers that are too large become infinite.
        return np.asarray(array, np.float32) if dtype in _REALS else array


def _modules(
    blocks: list[tuple[int, ...]], units: list[tuple[int, ...]]
) -> Iterator[tuple[str, str]]:
    """Yields our name and timm's of each module with a weight, and perhaps a bias.

    Args:
        blocks: Numbers of the blocks.
        units: Stages and numbers of the units of a hybrid's stem, both from 0.
    """
    yield from (
        ("embedding", "patch_embed.proj"),
        ("Transformer/encoder_norm", "norm"),
        ("pre_logits", "pre_logits.fc"),
        ("head", "head"),
        ("MAPHead_0/LayerNorm_0", "attn_pool.norm"),
    )
    for ours, timm in _MLP.items():
        yield f"MAPHead_0/MlpBlock_0/{ours}", f"attn_pool.{timm}"
    for (i,) in blocks:
        start = f"Transformer/encoderblock_{i}/"
        for ours, timm in _NORMS.items():
            yield f"{start}{ours}", f"blocks.{i}.{timm}"
        for ours, timm in _MLP.items():
            yield f"{start}MlpBlock_3/{ours}", f"blocks.{i}.{timm}"
    root = "patch_embed.backbone.stem." if units else "patch_embed.backbone."
    yield from (("conv_root", f"{root}conv"), ("gn_root", f"{root}norm"))
    for stage, unit in units:
        ours = f"block{stage + 1}/unit{unit + 1}/"
        timm = f"patch_embed.backbone.stages.{stage}.blocks.{unit}."
        for kind, other in (("conv", "conv"), ("gn", "norm")):
            yield from ((f"{ours}{kind}{n}", f"{timm}{other}{n}") for n in (1, 2, 3))
            yield f"{ours}{kind}_proj", f"{timm}downsample.{other}"


def _attentions(blocks: list[tuple[int, ...]]) -> Iterator[tuple[str, str]]:
    """Yields our prefix and timm's of each attention layer."""
    for (i,) in blocks:
        start = f"Transformer/encoderblock_{i}/"
        yield f"{start}MultiHeadDotProductAttention_1/", f"blocks.{i}.attn."
    yield "MAPHead_0/MultiHeadDotProductAttention_0/", "attn_pool."


def _stacks(timm: str) -> dict[str, tuple[str, ...]]:
    """Returns the projections that timm stacks, in its order."""
    if timm == "attn_pool.":
        return {"q": ("query",), "kv": ("key", "value")}
    return {"qkv": ("query", "key", "value")}


def _attention_to_timm(
    params: dict[str, np.ndarray], ours: str, timm: str
) -> dict[str, np.ndarray]:
    """Removes an attention layer from our parameters, and returns it in timm's form."""
    if f"{ours}out/kernel" not in params:
        return {}
    layer_arrays = {}
    for stack, layers in _stacks(timm).items():
        kernels = [params.pop(f"{ours}{layer}/kernel") for layer in layers]
        biases = [params.pop(f"{ours}{layer}/bias") for layer in layers]
        flat = [kernel.reshape(kernel.shape[0], -1).T for kernel in kernels]
        layer_arrays[f"{timm}{stack}.weight"] = np.concatenate(flat)
        layer_arrays[f"{timm}{stack}.bias"] = np.concatenate([bias.reshape(-1) for bias in biases])
    out = params.pop(f"{ours}out/kernel")
    layer_arrays[f"{timm}proj.weight"] = out.reshape(-1, out.shape[-1]).T
    layer_arrays[f"{timm}proj.bias"] = params.pop(f"{ours}out/bias")
    return layer_arrays


def _attention_from_timm(
    arrays: dict[str, np.ndarray], ours: str, timm: str, heads: int
) -> dict[str, np.ndarray]:
    """Removes an attention layer from timm's arrays, and returns it in our form."""
    weight = arrays.get(f"{timm}proj.weight")
    if weight is None:
        return {}
    features = weight.shape[0]
    heads = heads or usual_heads(features)
    if not heads or features % heads:
        raise SettingError(
            f"{timm}proj.weight has {features} features, which do not divide into {heads} heads; "
            "give the number of heads, which timm's files do not record."
        )
    shape = (heads, features // heads)
    _require_shape(f"{timm}proj.weight", weight, (features, features))
    layer_arrays = {
        f"{ours}out/kernel": arrays.pop(f"{timm}proj.weight").T.reshape(*shape, features)
    }
    if f"{timm}proj.bias" in arrays:
        layer_arrays[f"{ours}out/bias"] = arrays.pop(f"{timm}proj.bias")
    for stack, layers in _stacks(timm).items():
        for kind, leaf, rest in (("weight", "kernel", (features,)), ("bias", "bias", ())):
            name = f"{timm}{stack}.{kind}"
            require(
                name in arrays, f"The timm checkpoint is not a supported ViT: it has no {name}."
            )
            array = arrays.pop(name)
            _require_shape(name, array, (len(layers) * features, *rest))
            for layer, piece in zip(layers, np.split(array, len(layers)), strict=True):
                layer_arrays[f"{ours}{layer}/{leaf}"] = piece.T.reshape(*rest, *shape)
    return layer_arrays


def _require_shape(name: str, array: np.ndarray, shape: tuple[int, ...]) -> None:
    if array.shape != shape:
        raise SettingError(f"{name} is mis-shaped: {array.shape} instead of {shape}.")


def _with_cls_position(params: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Adds the position of [CLS] if there is a [CLS] without one."""
    positions = params.get(names.POSITION)
    if positions is not None and positions.ndim == 3 and "cls" in params:
        tokens = positions.shape[1]
        if tokens and math.isqrt(tokens - 1) ** 2 != tokens - 1:
            zeros = np.zeros_like(positions[:, :1])
            params[names.POSITION] = np.concatenate([zeros, positions], axis=1)
    return params


def _numbers(arrays: Collection[str], pattern: str) -> list[tuple[int, ...]]:
    """Returns the sorted numbers that a pattern matches at the start of names."""
    matches = filter(None, map(re.compile(pattern).match, arrays))
    return sorted({tuple(map(int, match.groups())) for match in matches})
