"""The peers' side of a row: torch and timm."""

import importlib.util
from collections.abc import Callable
from typing import Any

from remem_jax import models
from tools.benchmarks import turns
from tools.benchmarks.rows import Work

CLASSES = 1000
_NAMES = {
    "Ti/16": "vit_tiny_patch16_224",
    "B/16": "vit_base_patch16_224",
    **{name: student.timm for name, student in models.STUDENTS.items()},
}


def missing(device: str) -> str:
    """Returns why the peers cannot run on "cpu" or "gpu"; "" if they can."""
    names = ("torch", "timm", "pytest")  # `tests.oracles.peers` needs pytest.
    absent = [name for name in names if importlib.util.find_spec(name) is None]
    if absent:
        return f"{' and '.join(absent)} not installed here: pip install '.[peers,test]'"
    if device == "gpu" and not _torch().cuda.is_available():
        return f"torch {_torch().__version__} finds no GPU"
    return ""


def make(work: Work) -> turns.Side:
    """Returns their side of some work, ready to run."""
    torch = _torch()
    if work.dtype == "bfloat16":  # For products that stay in float32.
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.benchmark = True
    make_run = {"forward": _forward, "step": _step, "student": _student, "kd": _kd}[work.kind]
    run = make_run(torch, work)
    # Set last, because `tests.oracles.peers` sets one thread when it imports torch.
    torch.set_num_threads(len(turns.cores()))
    if _place(torch, work) != "cuda":
        return turns.Side(run, lambda: None, lambda: 0.0, lambda: None)
    return turns.Side(run, torch.cuda.synchronize, lambda: 0.0, torch.cuda.max_memory_allocated)


def _torch() -> Any:
    from tests.oracles import peers

    return peers.torch()


def _place(torch: Any, work: Work) -> str:
    return "cuda" if work.dtype == "bfloat16" and torch.cuda.is_available() else "cpu"


def _network(torch: Any, work: Work, name: str) -> Any:
    from tests.oracles import peers

    options = {"img_size": work.pixels} if _NAMES[name].startswith("vit_") else {}
    network = peers.timm().create_model(_NAMES[name], num_classes=CLASSES, **options)
    return network.to(device=_place(torch, work), memory_format=_order(torch, work))


def _order(torch: Any, work: Work) -> Any:
    """Returns the faster memory format: on a CPU, in float32, torch is faster channels first."""
    return torch.channels_last if work.dtype == "bfloat16" else torch.contiguous_format


def _examples(torch: Any, work: Work) -> tuple[Any, Any]:
    place = _place(torch, work)
    images = torch.from_numpy(turns.images(work).transpose(0, 3, 1, 2).copy())
    images = images.to(device=place, memory_format=_order(torch, work))
    return images, torch.arange(work.batch, device=place)


def _quick(torch: Any, work: Work, function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns the fastest form of a function: unchanged in float32, compiled in bfloat16."""
    if work.dtype == "float32":
        return function
    place = _place(torch, work)

    def mixed(*arguments: Any) -> Any:
        with torch.autocast(place, dtype=torch.bfloat16):
            return function(*arguments)

    # On a CPU, bfloat16 only tries the tool, so the graph is captured but not compiled.
    return torch.compile(mixed, backend="inductor" if place == "cuda" else "eager")


def _sgd(torch: Any, work: Work, network: Any, **options: Any) -> Any:
    if _place(torch, work) == "cuda":
        options["fused"] = True
    return torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, **options)


def _forward(torch: Any, work: Work) -> Callable[[], Any]:
    network = _network(torch, work, work.variant).eval()
    images, _ = _examples(torch, work)
    forward = _quick(torch, work, network)

    def run() -> Any:
        with torch.inference_mode():
            return forward(images)

    return run


def _step(torch: Any, work: Work) -> Callable[[], Any]:
    network = _network(torch, work, work.variant)
    optimizer = _sgd(torch, work, network)
    images, labels = _examples(torch, work)

    def plain_loss(images: Any, labels: Any) -> Any:
        return torch.nn.functional.cross_entropy(network(images), labels)

    loss = _quick(torch, work, plain_loss)

    def backward() -> None:
        optimizer.zero_grad()
        loss(images, labels).backward()

    def run() -> None:
        backward()
        if work.rho:
            _climb_and_return(torch, network, work.rho, backward)
        optimizer.step()

    return run


def _climb_and_return(torch: Any, model: Any, rho: float, backward: Callable[[], None]) -> None:
    """Computes SAM's second gradient, at the parameters after the ascent step."""
    with torch.no_grad():
        params = [p for p in model.parameters() if p.grad is not None]
        grads = [p.grad for p in params]
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
        climbed = torch._foreach_mul(grads, rho / (norm + 1e-12))
        torch._foreach_add_(params, climbed)
    backward()
    with torch.no_grad():
        torch._foreach_sub_(params, climbed)


def _student(torch: Any, work: Work) -> Callable[[], Any]:
    def hard(logits: Any, labels: Any) -> Any:
        return torch.nn.functional.cross_entropy(logits, labels)

    return _descent(torch, work, hard, lambda: ())


def _kd(torch: Any, work: Work) -> Callable[[], Any]:
    softened = torch.nn.functional.log_softmax
    teacher = _forward(torch, work)

    def both(logits: Any, labels: Any, targets: Any) -> Any:
        soft = torch.nn.functional.kl_div(
            softened(logits / 4, -1), softened(targets / 4, -1), log_target=True,
            reduction="batchmean",
        )  # fmt: skip
        return 0.5 * torch.nn.functional.cross_entropy(logits, labels) + 0.5 * 16 * soft

    # Cloned, because autograd cannot save tensors of inference mode for the backward pass.
    return _descent(torch, work, both, lambda: (teacher().clone(),))


def _descent(
    torch: Any, work: Work, loss_of: Callable[..., Any], targets: Callable[[], tuple[Any, ...]]
) -> Callable[[], Any]:
    """Returns a student's step for a loss of its logits, the labels and a teacher's outputs."""
    network = _network(torch, work, work.student)
    optimizer = _sgd(torch, work, network, nesterov=True, weight_decay=1e-4)
    images, labels = _examples(torch, work)

    def plain_loss(images: Any, labels: Any, *targets: Any) -> Any:
        return loss_of(network(images), labels, *targets)

    loss = _quick(torch, work, plain_loss)

    def run() -> None:
        optimizer.zero_grad()
        loss(images, labels, *targets()).backward()
        optimizer.step()

    return run
