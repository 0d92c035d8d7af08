"""What the arrays of a ViT do not determine: heads, epsilons, GELU, pooling, rotary positions."""

from typing import Any, NamedTuple

from remem_jax.models.rotary import Rotary


class Facts(NamedTuple):
    """Facts on a ViT from its description, such as a config.json; a default is an unknown fact.

    Attributes:
        heads: Number of attention heads.
        gelu: One of `mlp.GELUS`.
        epsilon: Epsilon of its norms.
        pool: One of `vit.POOLS`.
        rope: Its rotary positions.
        pool_heads: Number of heads of attention pooling.
        architecture: timm's name of the network.
    """

    heads: int = 0
    gelu: str = ""
    epsilon: float = 0.0
    pool: str = ""
    rope: Rotary | None = None
    pool_heads: int = 0
    architecture: str = ""

    def added(self) -> dict[str, Any]:
        """Returns the facts that differ from those of a plain ViT of timm, without its name."""
        plain = Facts(gelu="erf", epsilon=1e-6, architecture=self.architecture)._asdict()
        unknown = UNKNOWN._asdict()
        return {
            name: value
            for name, value in self._asdict().items()
            if value not in (plain[name], unknown[name])
        }


UNKNOWN = Facts()
