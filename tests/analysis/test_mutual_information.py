"""Mutual information by reconstruction, against closed forms, torch and known channels."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Float
from scipy import special, stats

from remem_jax import models
from remem_jax.analysis import mutual_information
from remem_jax.models import decoder
from remem_jax.train import state
from tests.oracles import channels, peers

pytestmark = pytest.mark.usefixtures("mixed_dtypes")
SIZE, SIDE, BATCH = 16, 2, 32  # Sides of images and token grids, both with 3 channels.


@pytest.fixture
def images(rng: np.random.Generator) -> Float[Array, "batch height width channel"]:
    """Images in [0, 1]; some values are exactly 0 or 1."""
    return jnp.asarray(np.clip(rng.uniform(-0.2, 1.2, (BATCH, SIZE, SIZE, 3)), 0, 1), jnp.float32)


@pytest.fixture
def logits(rng: np.random.Generator) -> Float[Array, "batch height width channel"]:
    return jnp.asarray(rng.normal(0, 5, (BATCH, SIZE, SIZE, 3)), jnp.float32)


def adamw(learning_rate: float) -> Any:
    return mutual_information.adamw(
        learning_rate, betas=(0.9, 0.999), weight_decay=1e-4, epsilon=1e-8
    )


def pixel_decoder(params: Any, features: Array) -> Array:
    """Predicts each sub-pixel from the feature at the same place, by one slope and offset."""
    return params["slope"] * features + params["offset"]


def train_pixel_decoder(params: Any, statistics: Any, features: Array, key: Array) -> Any:
    return pixel_decoder(params, features), statistics


def evaluate_pixel_decoder(variables: Any, features: Array) -> Array:
    return pixel_decoder(variables["params"], features)


pixel_measure = jax.jit(mutual_information.make_measure(evaluate_pixel_decoder))
PIXEL_VARIABLES = {"params": {"slope": jnp.float32(0.7), "offset": jnp.float32(-0.1)}}


def whole(images: Array) -> mutual_information.HeldOutBatch:
    """All images in one batch."""
    return mutual_information.HeldOutBatch(images, jnp.ones(len(images), bool))


class Bench:
    """Decoders of Table 7 for tiny images, which share one compiled step."""

    def __init__(self) -> None:
        self.traces = 0
        self.tx = adamw(0.01)
        self.model = decoder.make(image_size=SIZE)
        self.init = decoder.make_init(self.model, side=SIDE, width=3)
        self.step = jax.jit(mutual_information.make_decoder_step(self._apply, self.tx))
        self.measure = jax.jit(mutual_information.make_measure(models.evaluation_apply(self.model)))

    def _apply(self, *arguments: Any) -> Any:
        self.traces += 1
        return models.train_apply(self.model)(*arguments)

    def first(self, seed: int) -> state.State:
        return state.create(self.init(jax.random.key(seed)), self.tx)

    def train(
        self,
        teachers: Sequence[Callable[[Array], Array]],
        seeds: Sequence[int],
        teacher_indices: Sequence[int],
        images: Array,
        steps: int = 3,
    ) -> tuple[Any, list[Any]]:
        """Trains on the same images; returns the states and the losses of each step."""
        steps_of = [self.step] * len(teacher_indices)
        lockstep = mutual_information.make_lockstep(steps_of, teachers, teacher_indices)
        states, losses = tuple(self.first(seed) for seed in seeds), []
        for _ in range(steps):
            states, metrics = lockstep(states, images)
            losses.append(metrics["loss"])
        return states, losses


@pytest.fixture(scope="module")
def bench() -> Bench:
    return Bench()


def teachers() -> list[Any]:
    """Two teachers with the means of 8 x 8 pixels as tokens."""

    def pooled(images: Array) -> Array:
        return images.reshape(BATCH, SIDE, SIZE // SIDE, SIDE, SIZE // SIDE, 3).mean((2, 4))

    return [jax.jit(pooled), jax.jit(lambda images: jnp.sin(3 * pooled(images)))]


def test_the_cross_entropy_equals_torchs(images: Array, logits: Array) -> None:
    torch = peers.torch()
    probabilities = torch.tensor(np.asarray(logits, np.float64)).sigmoid()
    expected = torch.nn.BCELoss()(probabilities, torch.tensor(np.asarray(images, np.float64)))

    actual = mutual_information.reconstruction_loss(logits, images)

    np.testing.assert_allclose(actual, expected.item(), rtol=1e-6)


def test_logits_of_bfloat16_are_compared_in_float32(images: Array, logits: Array) -> None:
    coarse = logits.astype(jnp.bfloat16)

    actual = mutual_information.reconstruction_loss(coarse, images)

    expected = mutual_information.reconstruction_loss(coarse.astype(jnp.float32), images)
    np.testing.assert_array_equal(actual, expected)


def test_a_small_loss_is_accurate() -> None:
    confident = jnp.full((1, 1, 1, 1), 30.0)

    actual = mutual_information.reconstruction_loss(confident, jnp.ones((1, 1, 1, 1)))

    np.testing.assert_allclose(actual, np.log1p(np.exp(-30.0)), rtol=1e-5)


def test_the_floor_equals_scipys_entropy(images: Array) -> None:
    values = np.asarray(images, np.float64)
    expected = stats.entropy(np.stack([values, 1 - values]), axis=0).mean()

    actual = jnp.mean(mutual_information.entropies(images))

    np.testing.assert_allclose(actual, expected, rtol=1e-6)


def test_black_and_white_have_no_entropy() -> None:
    actual = mutual_information.entropies(jnp.asarray([0.0, 1.0]).reshape(1, 1, 2, 1))

    np.testing.assert_array_equal(actual, 0.0)


def test_the_floor_is_the_loss_of_the_pixels_themselves(images: Array) -> None:
    inside = jnp.clip(images, 0.01, 0.99)
    exact = jnp.asarray(special.logit(np.asarray(inside, np.float64)), jnp.float32)

    loss = mutual_information.cross_entropies(exact, inside)

    np.testing.assert_allclose(loss, mutual_information.entropies(inside), rtol=1e-5)


def test_no_loss_is_below_the_floor(images: Array, logits: Array) -> None:
    loss = mutual_information.cross_entropies(logits, images)

    assert np.all(np.asarray(loss - mutual_information.entropies(images)) >= -1e-6)


def test_images_are_mapped_to_the_range_of_decoders() -> None:
    images = jnp.asarray([-1.0, 0.0, 1.0, 1.0000001]).reshape(1, 2, 2, 1)

    actual = mutual_information.to_unit_range(images)

    np.testing.assert_array_equal(actual.reshape(-1), [0.0, 0.5, 1.0, 1.0])


def test_steps_agree_with_torch(bench: Bench, images: Array, rng: np.random.Generator) -> None:
    torch = peers.torch()
    features = jnp.asarray(rng.normal(size=(BATCH, SIDE, SIDE, 3)), jnp.float32)
    ours = bench.first(0)
    peer = peers_decoder(ours.variables).train()
    optimiser = torch.optim.AdamW(peer.parameters(), lr=0.01, weight_decay=1e-4)
    targets = torch.tensor(np.asarray(images).transpose(0, 3, 1, 2).copy())
    torch_features = torch.tensor(np.asarray(features).transpose(0, 3, 1, 2).copy())
    expected, actual = [], []
    for _ in range(4):
        loss = torch.nn.functional.binary_cross_entropy_with_logits(peer(torch_features), targets)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        expected.append(loss.item())

    for _ in range(4):
        ours, metrics = bench.step(ours, features, images)
        actual.append(float(metrics["loss"]))

    # Adam makes full steps also for gradients that are rounding errors, as before a BatchNorm.
    np.testing.assert_allclose(actual, expected, rtol=1e-3)
    assert actual[-1] < actual[0] - 0.05


def peers_decoder(variables: Any) -> Any:
    """The decoder of Table 7 in torch, with these weights."""
    torch = peers.torch()
    modules = []
    for number, share in enumerate((8, 4, 2, 1), start=1):
        params = variables["params"][f"conv{number}"]
        kernel = torch.tensor(np.asarray(params["kernel"]).transpose(3, 2, 0, 1))
        conv = torch.nn.Conv2d(*kernel.shape[1::-1], kernel.shape[2], padding=int(number > 1))
        conv.weight.data, conv.bias.data = kernel, torch.tensor(np.asarray(params["bias"]))
        size = (SIZE // share,) * 2
        modules += [torch.nn.Upsample(size, mode="bilinear", align_corners=True), conv]
        if number < 4:
            modules += [torch.nn.BatchNorm2d(len(kernel)), torch.nn.ReLU()]
    return torch.nn.Sequential(*modules)


def test_decoders_trained_together_equal_one_trained_alone(bench: Bench, images: Array) -> None:
    first, second = teachers()

    together, _ = bench.train([first, second], [0, 0, 1], [0, 1, 1], images)

    alone, _ = bench.train([second], [1], [0], images)
    jax.tree.map(np.testing.assert_array_equal, together[2], alone[0])


def test_all_decoders_share_one_compiled_step(images: Array) -> None:
    bench = Bench()

    bench.train(teachers(), [0, 1, 2], [0, 1, 0], images)

    assert bench.traces == 1


def test_every_teacher_is_applied_once_per_batch(bench: Bench, images: Array) -> None:
    teacher, sizes = teachers()[0], []

    def counted(images: Array) -> Array:
        sizes.append(len(images))
        return teacher(images)

    bench.train([counted], [0, 1], [0, 0], images, steps=2)

    assert sizes == [BATCH, BATCH]


def test_a_teacher_without_a_decoder_is_refused(bench: Bench) -> None:
    with pytest.raises(ValueError, match=r"Each of the 2 teachers .* got the teachers \[0, 0\]"):
        mutual_information.make_lockstep([bench.step] * 2, teachers(), [0, 0])


def test_statistics_are_kept_for_evaluation(bench: Bench, images: Array) -> None:
    (trained,), _ = bench.train(teachers()[:1], [0], [0], images)

    mean = trained.variables["batch_stats"]["bn1"]["mean"]

    assert np.abs(np.asarray(mean)).max() > 0


def test_means_do_not_depend_on_the_batches(images: Array) -> None:
    images = 2 * images - 1
    padded = jnp.concatenate([images[17:], images[:2]])
    batches = [whole(images[:17]), mutual_information.HeldOutBatch(padded, jnp.arange(17) < 15)]
    identity = [lambda images: images]
    (expected,) = mutual_information.evaluate(
        pixel_measure, identity, [0], [PIXEL_VARIABLES], [whole(images)]
    )

    (actual,) = mutual_information.evaluate(
        pixel_measure, identity, [0], [PIXEL_VARIABLES], batches
    )

    for mine, theirs in zip(actual, expected, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-6)


def test_the_loss_is_the_mean_over_images_and_pixels(images: Array) -> None:
    features = 2 * images - 1
    logits = pixel_decoder(PIXEL_VARIABLES["params"], features)

    (result,) = mutual_information.evaluate(
        pixel_measure, [lambda images: images], [0], [PIXEL_VARIABLES], [whole(features)]
    )

    loss = mutual_information.reconstruction_loss(logits, images)
    np.testing.assert_allclose(result.loss, loss, rtol=1e-6)
    np.testing.assert_allclose(result.image_losses.mean(), loss, rtol=1e-6)
    np.testing.assert_allclose(
        result.floor, jnp.mean(mutual_information.entropies(images)), rtol=1e-6
    )
    np.testing.assert_allclose(result.excess, result.loss - result.floor)
    np.testing.assert_allclose(result.pixel_excess.mean(), result.excess, rtol=1e-5)


def test_every_decoder_is_evaluated_on_its_teacher(images: Array) -> None:
    images = 2 * images - 1
    double = [lambda images: images, lambda images: 2 * images]
    (expected,) = mutual_information.evaluate(
        pixel_measure, double[1:], [0], [PIXEL_VARIABLES], [whole(images)]
    )

    results = mutual_information.evaluate(
        pixel_measure, double, [1, 0], [PIXEL_VARIABLES] * 2, [whole(images)]
    )

    assert results[0].loss == expected.loss != results[1].loss


def test_no_images_are_refused() -> None:
    with pytest.raises(ValueError, match="no images to reconstruct"):
        mutual_information.evaluate(
            pixel_measure, [lambda images: images], [0], [PIXEL_VARIABLES], []
        )


@pytest.mark.parametrize("flipped", [1 / 16, 3 / 16, 1 / 2])
def test_the_information_of_a_binary_channel_is_found(
    rng: np.random.Generator, flipped: float
) -> None:
    shape = (32, SIZE, SIZE, 2)
    train, held_out = (
        jnp.asarray(channels.symmetric_channel(rng, shape, flipped), jnp.float32) for _ in range(2)
    )
    tx = adamw(0.1)
    step = jax.jit(mutual_information.make_decoder_step(train_pixel_decoder, tx))
    trained = state.create(PIXEL_VARIABLES, tx)
    for _ in range(150):
        trained, _ = step(trained, train[1], train[0])

    (result,) = mutual_information.evaluate(
        pixel_measure,
        [lambda images: held_out[1]],
        [0],
        [trained.variables],
        [whole(2 * held_out[0] - 1)],
    )

    lower_bound = np.log(2) - result.loss
    information = channels.symmetric_information(flipped)
    assert lower_bound <= information + 1e-6  # Rounding in float32.
    assert lower_bound == pytest.approx(
        information, abs=1e-4
    )  # The remaining error after 150 steps.


def blocks(rng: np.random.Generator, flipped: float) -> tuple[Array, Array]:
    """Images of random binary patches, and tokens with the same values, some flipped."""
    patches, tokens = channels.symmetric_channel(rng, (BATCH, SIDE, SIDE, 3), flipped)
    images = patches.repeat(SIZE // SIDE, axis=1).repeat(SIZE // SIDE, axis=2)
    return jnp.asarray(images, jnp.float32), jnp.asarray(tokens, jnp.float32)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_more_noise_gives_a_larger_loss(bench: Bench, rng: np.random.Generator, seed: int) -> None:
    generator, losses, entropies = rng.spawn(3)[seed], [], []

    for flipped in (0, 1 / 8, 5 / 16):
        trained = bench.first(seed)
        for _ in range(60):
            images, tokens = blocks(generator, flipped)
            trained, _ = bench.step(trained, tokens, images)
        images, tokens = blocks(generator, flipped)
        (result,) = mutual_information.evaluate(
            bench.measure,
            [lambda _, t=tokens: t],
            [0],
            [trained.variables],
            [whole(2 * images - 1)],
        )
        losses.append(result.loss)
        entropies.append(channels.binary_entropy(flipped))

    assert losses[0] < losses[1] < losses[2]
    assert all(np.greater(losses, entropies))


def test_the_slope_is_fitted_to_the_last_evaluations() -> None:
    losses = [9.0, 3.0, 0.5, 0.4, 0.3]

    assert mutual_information.plateau_slope(losses, last=3) == pytest.approx(-0.1)


def test_a_slope_of_too_few_evaluations_is_refused() -> None:
    with pytest.raises(ValueError, match="2 to 2 evaluations, got last=3"):
        mutual_information.plateau_slope([0.5, 0.4], last=3)
