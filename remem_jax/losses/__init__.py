"""Losses: functions of logits or features that return one float32 number for the batch.

They are in nats, except `dist`, which is computed from correlations, and `features`, a squared
error.
"""

from remem_jax.losses.correlation import dist as dist
from remem_jax.losses.correlation import dist_distillation as dist_distillation
from remem_jax.losses.softened import decoupled as decoupled
from remem_jax.losses.softened import distillation as distillation
from remem_jax.losses.softened import knowledge_distillation as knowledge_distillation
from remem_jax.losses.softened import standardise as standardise
from remem_jax.losses.supervision import (
    conditional_mutual_information as conditional_mutual_information,
)
from remem_jax.losses.supervision import cross_entropy as cross_entropy
from remem_jax.losses.supervision import effective_number_weights as effective_number_weights
from remem_jax.losses.supervision import supervised as supervised
from remem_jax.losses.tokens import features as features
from remem_jax.losses.tokens import normalised as normalised
from remem_jax.losses.tokens import queue_similarity as queue_similarity
from remem_jax.losses.tokens import token_similarity as token_similarity
