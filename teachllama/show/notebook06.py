"""The pictures of notebook 06; they live in `teachllama.lessons.n06_architectures`."""

from teachllama.lessons.n06_architectures.pictures import *  # noqa: F403
