"""A shim: Beam's --setup_file ships this tree to its workers. Everything is declared in pyproject.toml."""

import setuptools

setuptools.setup()
