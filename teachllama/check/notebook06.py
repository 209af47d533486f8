"""The checks of notebook 06, defined in `teachllama.lessons.n06_architectures`."""

from teachllama.lessons.n06_architectures.checks import *  # noqa: F403
