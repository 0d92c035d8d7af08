"""Adds configs/ to the package as remem_jax/shipped/configs; all else is in setup.cfg."""

from setuptools import find_packages, setup

_SHIPPED = "remem_jax.shipped.configs"

setup(
    packages=[
        *find_packages(include=["remem_jax*"]),
        *(_SHIPPED + name for name in ("", ".figures", ".tables")),
    ],
    package_dir={_SHIPPED: "configs"},
)
