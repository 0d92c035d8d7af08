"""Initial parameters of RegNets and ResNets are distributed as timm's."""

from typing import Any

import jax
import numpy as np
import pytest

from remem_jax import models
from remem_jax.models import regnet, resnet
from remem_jax.weights import torch_names
from tests.oracles import peers

# Networks with the first blocks of timm's.
MODELS = {
    "regnety_004": regnet.make(regnet.Architecture((1, 1), (48, 104), 8), classes=100),
    "resnet26d": resnet.make(depths=(1, 1), bottleneck=True, variant="d", classes=100),
}


@pytest.mark.parametrize("name", MODELS)
def test_initial_parameters_have_the_mean_and_deviation_of_timms(name: str) -> None:
    peer = peers.timm().create_model(name).state_dict()
    variables: Any = models.init(MODELS[name], jax.random.key(0), 32)

    arrays = torch_names.to_timm({"params": variables["params"]})

    for parameter, array in arrays.items():
        if "fc." in parameter and name == "resnet26d":
            continue  # Its deviation depends on the number of features.
        expected = peer[parameter].numpy()
        # The kernels have at least 100 entries each.
        np.testing.assert_allclose(array.std(), expected.std(), rtol=0.25, err_msg=parameter)
        if expected.std() == 0:
            np.testing.assert_array_equal(array.ravel()[0], expected.ravel()[0], parameter)
