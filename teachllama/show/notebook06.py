"""The pictures of notebook 06, defined in `teachllama.lessons.n06_architectures`."""

from teachllama.lessons.n06_architectures.pictures import *  # noqa: F403
