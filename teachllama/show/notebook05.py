"""The pictures of notebook 05, defined in `teachllama.lessons.n05_performance`."""

from teachllama.lessons.n05_performance.pictures import *  # noqa: F403
