"""The pictures of notebook 03, defined in `teachllama.lessons.n03_sampling`."""

from teachllama.lessons.n03_sampling.pictures import *  # noqa: F403
